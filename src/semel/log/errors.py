"""What can be wrong with a data folder: damage below what was synced, another format, a disk that failed."""

from __future__ import annotations

from semel.errors import SemelError


class FolderProblem(SemelError):
    """Something is wrong within the data folder. The message names the file; the host, which knows where the folder
    lies, puts that before it."""


class FolderError(FolderProblem):
    """The folder cannot be used as it is: another format, no semel folder, a file missing."""


class CorruptJournal(FolderProblem):
    """Bytes of the journal that had been synced are damaged. Nothing after them is used, nothing is changed."""


class CorruptSegment(FolderProblem):
    """A segment does not hold what was synced into it."""


class JournalFailed(SemelError):
    """An append or a sync failed earlier; what reached the disk is unknown, so the process must end before it
    answers anybody. The next start finds out."""

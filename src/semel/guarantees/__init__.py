"""What may be promised: the guarantee of every path from a source to a sink, with its reasons, before anything runs.

`paths.analyse` walks the graph and puts each path before the rules of `rules.py`; `readers.py` knows what the other
side must set; `report.py` writes it down. Nothing here asks a log or a sink: what only they could answer is *unknown*.

Invariant: a guarantee printed here is never stronger than what every rule allows (law 8).
"""

from semel.guarantees.paths import Circumstances, LogKind, Path, Report, analyse

__all__ = ["Circumstances", "LogKind", "Path", "Report", "analyse"]

"""An object store through obstore: S3 and its likes, GCS, Azure, a folder, memory.

Invariant: every call ends in one of four ways: it returns what it promises; `Taken`, the key has bytes already;
`Away`, nobody knows whether it happened; or a SinkError that a person must read. An error text carries no credential.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from semel.errors import UsageError
from semel.sinks.sink import SinkError

try:
    import obstore
    from obstore import exceptions, store
except ImportError as missing:
    raise UsageError(
        "Objects needs the obstore package, which is not installed here. Install it with: pip install 'semel[objects]'"
    ) from missing

Version = Mapping[str, str]  # of an object: what a conditional replacement compares

TAG = "semel"  # the object's metadata: sha256 of what is in it, before compression
RETRIES_MAX, RETRY_S, TIMEOUT_S = 3, 20, "30s"
CHUNK = 1_000

_PERSON = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
    NotImplementedError,
    PermissionError,
    ValueError,
    TypeError,
)
_ABSENT = (exceptions.NotFoundError, FileNotFoundError)
_TAKEN = (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileExistsError)
# An answer that will be the same the next time; not 408, 409, 425, 429.
_REFUSED = re.compile(r"status code: 4(?!08|09|25|29)\d\d")
# Not a secret whatever its value: may be shown in an error.
_PLAIN = frozenset({"region", "endpoint", "bucket", "aws_region", "aws_endpoint", "aws_bucket", "conditional_put"})


class Taken(Exception):
    """There are bytes under this key already, or it has changed since that version."""


class Away(Exception):
    """No answer that says what happened."""


class Store:
    def __init__(self, url: str, where: str, options: Mapping[str, str], made: Any = None) -> None:
        self._where = where
        self._secrets = [value for name, value in options.items() if name.lower() not in _PLAIN and len(value) > 3]
        self.folder = _folder(url) if made is None else None
        try:
            self._store: Any = made if made is not None else self._made(url, options)
        except (exceptions.BaseError, OSError, *_PERSON) as why:
            if self.folder is not None:  # obstore's words name neither the folder nor what to do
                raise SinkError(
                    f"{self._where}: the folder cannot be made or opened: {self._told(why)}. Create it, with the right "
                    "to write in it, or name another."
                ) from None
            raise self._person(why, "it cannot be opened") from None

    def _made(self, url: str, options: Mapping[str, str]) -> Any:
        if self.folder is not None:
            return store.LocalStore(self.folder, mkdir=True)
        config = dict(options)
        endpoint = next((v for k, v in config.items() if k.lower().endswith("endpoint")), "")
        if url.startswith(("s3://", "s3a://")):
            # The server compares what came with what was sent.
            config.setdefault("checksum_algorithm", "sha256")
        return store.from_url(
            url,
            config=config or None,  # type: ignore[call-overload]
            client_options={"timeout": TIMEOUT_S, "connect_timeout": "5s", "allow_http": endpoint.startswith("http:")},
            retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_S)},
        )

    # --- writing ---

    def create(self, key: str, body: bytes, tag: str) -> None:
        """The object is there, whole, and was not before. Taken also when a former attempt of ours was the one that
        made it: the client library sends again by itself, and is then told of its own write."""
        try:
            if self.folder is None:
                obstore.put(self._store, key, body, mode="create", attributes={TAG: tag}, use_multipart=False)
            else:
                obstore.put(self._store, key, body, mode="create", use_multipart=False)
        except _TAKEN as why:
            raise Taken(self._told(why)) from None
        except Exception as why:
            raise self._failed(why, f"{key} could not be written") from None
        self.sync(key)

    def replace(self, key: str, body: bytes, version: Version | None) -> Version:
        """The document has these bytes now, and had that version before (None: it was not there)."""
        if self.folder is not None:
            return self._numbered(key, body, int((version or {}).get("number", 0)) + 1)
        try:
            mode: Any = "create" if version is None else version
            return _version(obstore.put(self._store, key, body, mode=mode, use_multipart=False))
        except _TAKEN as why:
            raise Taken(self._told(why)) from None
        except Exception as why:
            raise self._failed(why, f"{key} could not be written") from None

    def _numbered(self, key: str, body: bytes, number: int) -> Version:
        """A folder compares nothing, it can only create: each version is a file of its own, the highest number counts.
        (Replaced in place, a superseded owner that was stopped before its write put an older manifest over a newer one;
        tests/sinks/test_cut_processes.py.)"""
        self.create(_number(key, number), body, "")
        numbers = self._numbers(key)
        if numbers[-1] > number:  # what came between has been cleaned away: we are late
            self.delete([_number(key, number)])
            raise Taken(f"{key} has changed")
        self.delete([_number(key, old) for old in numbers if old < number - 1])
        return {"number": str(number)}

    def _numbers(self, key: str) -> list[int]:
        stem, _, ending = key.rpartition(".")
        names = [name.removeprefix(f"{stem}.").split(".") for name in self.keys(key.rpartition("/")[0])]
        return sorted(int(parts[0]) for parts in names if len(parts) == 2 and parts[1] == ending and parts[0].isdigit())

    def sync(self, key: str) -> None:
        """In a folder: the file and its name survive a power cut. Elsewhere an answer says so."""
        if self.folder is None:
            return
        at = self.folder / key
        try:
            for path in (at, *at.relative_to(self.folder).parents):
                descriptor = os.open(self.folder / path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as why:
            raise Away(f"{self._where}: {key} could not be synced: {why.strerror}") from None

    # --- reading ---

    def tag(self, key: str) -> tuple[int, str] | None:
        """Size, and the tag it was created with, "" where the store keeps none; None: not there."""
        try:
            found = obstore.get(self._store, key, options={"head": True})
            return found.meta["size"], str(found.attributes.get(TAG, ""))
        except _ABSENT:
            return None
        except Exception as why:
            raise self._failed(why, f"{key} could not be looked at") from None

    def document(self, key: str) -> tuple[bytes, Version] | None:
        """What `replace` has written last."""
        if self.folder is None:
            return self.read(key)
        for number in reversed(self._numbers(key)):
            if (found := self.read(_number(key, number))) is not None:
                return found[0], {"number": str(number)}
        return None

    def documents(self, folder: str) -> list[str]:
        """The keys of the documents in a folder."""
        keys = self.keys(folder)
        return keys if self.folder is None else sorted({re.sub(r"\.\d+(\.\w+)$", r"\1", key) for key in keys})

    def read(self, key: str) -> tuple[bytes, Version] | None:
        try:
            found = obstore.get(self._store, key)
            return bytes(found.bytes()), _version(found.meta)
        except _ABSENT:
            return None
        except Exception as why:
            raise self._failed(why, f"{key} could not be read") from None

    def keys(self, folder: str, after: str = "") -> list[str]:
        """Of the objects below `folder` with a key past `after`, in order."""
        try:
            listed = obstore.list(self._store, prefix=folder or None, offset=after or None, chunk_size=CHUNK)
            return sorted(meta["path"] for chunk in listed for meta in chunk)
        except _ABSENT:
            return []
        except Exception as why:
            raise self._failed(why, f"{folder or 'it'} could not be listed") from None

    def clear(self) -> None:
        """Removes everything; a folder too."""
        if self.folder is None:
            self.delete(self.keys(""))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def delete(self, keys: list[str]) -> None:
        try:
            if keys:
                obstore.delete(self._store, keys)
        except Exception as why:
            raise self._failed(why, "objects could not be deleted") from None

    # --- errors ---

    def _failed(self, why: Exception, what: str) -> Exception:
        if isinstance(why, _ABSENT):
            return SinkError(
                f"{self._where}: {what}: there is no such bucket or folder ({self._told(why)}). Create it."
            )
        if isinstance(why, _PERSON) or _REFUSED.search(str(why)):
            return self._person(why, what)
        return Away(f"{self._where}: {what}: {self._told(why)}")

    def _person(self, why: BaseException, what: str) -> SinkError:
        return SinkError(f"{self._where}: {what}: {self._told(why)}. Check the URL, the options and the rights.")

    def _told(self, why: BaseException) -> str:
        """The first line, without secrets: obstore adds what it knows of the request."""
        return redacted(str(why).strip().partition("\n")[0], self._secrets)


def _number(key: str, number: int) -> str:
    stem, _, ending = key.rpartition(".")
    return f"{stem}.{number:010d}.{ending}"


def redacted(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "…")
    text = re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?…", text).rstrip(".")


def _folder(url: str) -> Path | None:
    """The folder that a URL or path names; None when it is no local one."""
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    return None if "://" in url else Path(url).absolute()


def _version(of: Any) -> Version:
    return {name: of[name] for name in ("e_tag", "version") if of.get(name) is not None}

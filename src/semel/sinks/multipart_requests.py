"""The six requests of an S3 multipart upload, signed (Signature Version 4), each sent once.

obstore uploads in parts, and keeps the upload's id to itself; here a new owner must find it. Nothing is sent again by
itself: whoever asks knows what became of it. Invariant: every call returns what it promises, or raises `Gone` (the
server knows no such upload), `Away` (nobody knows whether it happened) or a SinkError that a person must read, without
a secret in it.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from semel.sinks.objects_store import TAG, Away
from semel.sinks.sink import SinkError

TIMEOUT_S = 30.0
RETRIED = (408, 409, 425, 429)


class Gone(Exception):
    """NoSuchUpload: it was completed, or aborted; or it never was."""


class Upload(NamedTuple):
    key: str
    id: str


class Multipart:
    """Of one bucket. `options` has obstore's names; what is missing is taken from the environment (AWS_…)."""

    def __init__(self, bucket: str, where: str, options: Mapping[str, str]) -> None:
        said = {name.lower().removeprefix("aws_"): value for name, value in options.items()}

        def of(name: str, default: str = "") -> str:
            return said.get(name) or os.environ.get(f"AWS_{name.upper()}", default)

        self._bucket, self._where = bucket, where
        self._region = of("region", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
        self._key, self._secret, self._token = of("access_key_id"), of("secret_access_key"), of("session_token")
        if not self._key or not self._secret:
            raise SinkError(
                f"{where}: no credentials. Give options={{'access_key_id': …, 'secret_access_key': …}}, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        endpoint = of("endpoint", os.environ.get("AWS_ENDPOINT_URL", ""))
        # With an endpoint of its own the bucket is in the path, else in the host's name.
        url = urlsplit(endpoint or f"https://{bucket}.s3.{self._region}.amazonaws.com")
        self._path = f"{url.path.rstrip('/')}/{bucket}" if endpoint else ""
        self._secure, self._host = url.scheme == "https", url.netloc
        self._connection: http.client.HTTPConnection | None = None

    def create(self, key: str, tag: str) -> Upload:
        found = self._xml("POST", key, {"uploads": ""}, headers={f"x-amz-meta-{TAG}": tag})
        return Upload(key, _text(found, "UploadId"))

    def part(self, upload: Upload, number: int, body: bytes) -> None:
        self._send("PUT", upload.key, {"partNumber": str(number), "uploadId": upload.id}, body)

    def parts(self, upload: Upload) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        after = ""
        while True:
            answer = self._xml("GET", upload.key, {"uploadId": upload.id, "part-number-marker": after})
            found += [(int(_text(part, "PartNumber")), _text(part, "ETag")) for part in answer.findall("{*}Part")]
            after = _text(answer, "NextPartNumberMarker")
            if _text(answer, "IsTruncated") != "true":
                return sorted(found)

    def complete(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> None:
        listed = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in parts)
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        answer = self._xml("POST", upload.key, {"uploadId": upload.id}, body)
        if answer.tag.rpartition("}")[2] == "Error":  # a 200 that began before it failed
            raise Away(f"{self._where}: {upload.key} was not completed: {_text(answer, 'Message')}")

    def abort(self, upload: Upload) -> None:
        self._send("DELETE", upload.key, {"uploadId": upload.id})

    def listed(self, prefix: str) -> list[Upload]:
        """The uploads that nobody has completed or aborted."""
        found: list[Upload] = []
        key = id = ""
        while True:
            query = {"uploads": "", "prefix": prefix, "key-marker": key, "upload-id-marker": id}
            answer = self._xml("GET", "", query)
            found += [Upload(_text(one, "Key"), _text(one, "UploadId")) for one in answer.findall("{*}Upload")]
            key, id = _text(answer, "NextKeyMarker"), _text(answer, "NextUploadIdMarker")
            if _text(answer, "IsTruncated") != "true":
                return found

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- a request --------------------------------------------------------------------------------------------------

    def _xml(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> ElementTree.Element:
        answer = self._send(method, key, query, body, headers)
        try:
            return ElementTree.fromstring(answer)
        except ElementTree.ParseError:
            raise Away(f"{self._where}: {method} of {key or 'the bucket'} was answered with something else") from None

    def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        path = quote(f"{self._path}/{key}" if key else self._path or "/", safe="/-_.~")
        text = "&".join(
            f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in sorted(query.items()) if v or n == "uploads"
        )
        what = f"{method} of {key or 'the bucket'}"
        try:
            if self._connection is None:
                made: type[http.client.HTTPConnection] = http.client.HTTPConnection
                more = {}
                if self._secure:
                    made, more = http.client.HTTPSConnection, {"context": ssl.create_default_context()}
                self._connection = made(self._host, timeout=TIMEOUT_S, **more)  # type: ignore[arg-type]
            signed = self._signed(method, path, text, body, dict(headers or {}))
            self._connection.request(method, f"{path}?{text}", body or None, signed)
            answer = self._connection.getresponse()
            content, status = answer.read(), answer.status
            if answer.will_close:
                self.close()
        except (OSError, http.client.HTTPException) as why:
            self.close()
            raise Away(f"{self._where}: {what}: no answer ({type(why).__name__})") from None
        if status < 300:
            return content
        code = _code(content)
        if status == 404 and code in ("NoSuchUpload", ""):
            raise Gone(f"{self._where}: {what}: NoSuchUpload")
        if status >= 500 or status in RETRIED:
            raise Away(f"{self._where}: {what}: {status} {code}")
        raise SinkError(f"{self._where}: {what}: {status} {code}. Check the URL, the options and the rights.")

    def _signed(self, method: str, path: str, query: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers |= {"host": self._host, "x-amz-date": now, "x-amz-content-sha256": digest}
        if self._token:
            headers["x-amz-security-token"] = self._token
        names = ";".join(sorted(headers))
        listed = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
        canonical = "\n".join((method, path, query, listed, names, digest))
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        key = f"AWS4{self._secret}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        del headers["host"]  # http.client sends it
        return headers


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""


def _code(content: bytes) -> str:
    try:
        return _text(ElementTree.fromstring(content), "Code")
    except ElementTree.ParseError:
        return ""

"""Blob storage: containers are folders, blobs are files; block uploads, ranged reads, lists."""

from __future__ import annotations

import email.utils
import json
import re
import shutil
import uuid
import xml.sax.saxutils
from collections.abc import Mapping
from pathlib import Path

from aml_emulator.cloud import BLOB
from aml_emulator.messages import Answer, Request
from aml_emulator.state import State
from aml_emulator.tokens import Tokens

_META = "x-ms-meta-"
_PAGE = 5000  # blobs in a page of a list, as the service has it


class BlobStore:
    """Answers for the account's blob host."""

    def __init__(self, state: State, tokens: Tokens) -> None:
        self._root, self._blocks, self._meta = state.blobs, state.root / "blocks", state.root / "blobmeta"
        self._tokens = tokens
        self._root.mkdir(parents=True, exist_ok=True)

    def answer(self, request: Request) -> Answer:
        if not self._tokens.opens_storage(request):
            return _error(403, "AuthenticationFailed")
        path = request.path.strip("/")
        file = self._root / path
        if ".." in file.parts:
            return _error(400, "InvalidUri")
        if request.query.get("restype") == "container":
            return self._container(request, path)
        match request.method:
            case "PUT":
                return self._put(request, path, file)
            case "HEAD" | "GET" if not file.is_file():
                return _error(404, "BlobNotFound")
            case "HEAD":
                return Answer(200, b"", {**self._properties(path, file), "Content-Length": str(file.stat().st_size)})
            case "GET":
                return self._get(request, path, file)
            case "DELETE" if file.is_file():
                file.unlink()
                return Answer(202, b"", _common())
        return _error(404 if request.method == "DELETE" else 405, "BlobNotFound")

    def _container(self, request: Request, name: str) -> Answer:
        folder = self._root / name
        if request.method == "PUT":
            folder.mkdir(parents=True, exist_ok=True)
            return Answer(201, b"", _common())
        if not folder.is_dir():
            return _error(404, "ContainerNotFound")
        if request.query.get("comp") == "list":
            return self._list(request, name)
        return Answer(200, b"", {**_common(), "ETag": '"0x1"', "Last-Modified": _date(folder)})

    def _put(self, request: Request, path: str, file: Path) -> Answer:
        blocks, comp = self._blocks / path, request.query.get("comp")
        if comp == "metadata":
            if not file.is_file():
                return _error(404, "BlobNotFound")
            self._keep_metadata(request, path)
            return Answer(200, b"", self._properties(path, file))
        if comp == "block":
            blocks.mkdir(parents=True, exist_ok=True)
            (blocks / request.query["blockid"].replace("/", "_")).write_bytes(request.body)
            return Answer(201, b"", _common())
        if not (self._root / path.split("/")[0]).is_dir():
            return _error(404, "ContainerNotFound")
        if request.headers.get("If-None-Match") == "*" and file.is_file():
            return _error(409, "BlobAlreadyExists")
        file.parent.mkdir(parents=True, exist_ok=True)
        content = request.body
        if comp == "blocklist":
            names = re.findall(rb"<(?:Latest|Uncommitted|Committed)>([^<]+)<", request.body)
            content = b"".join((blocks / name.decode().replace("/", "_")).read_bytes() for name in names)
            shutil.rmtree(blocks, ignore_errors=True)
        partial = file.with_name(f".{uuid.uuid4().hex}.part")
        partial.write_bytes(content)
        partial.replace(file)  # a blob is there whole or not at all
        self._keep_metadata(request, path)
        properties = self._properties(path, file)
        del properties["Content-Type"]
        return Answer(201, b"", properties)

    def _get(self, request: Request, path: str, file: Path) -> Answer:
        wanted = request.headers.get("x-ms-range") or request.headers.get("Range")
        size = file.stat().st_size
        if not wanted:
            return Answer(200, file.read_bytes(), self._properties(path, file))
        found = re.match(r"bytes=(\d+)-(\d*)", wanted)
        if not found or int(found[1]) >= size:
            return _error(416, "InvalidRange")
        first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
        with file.open("rb") as opened:
            opened.seek(first)
            piece = opened.read(last - first + 1)
        headers = {**self._properties(path, file), "Content-Range": f"bytes {first}-{first + len(piece) - 1}/{size}"}
        return Answer(206, piece, headers)

    def _list(self, request: Request, name: str) -> Answer:
        prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter")
        folder, marker = self._root / name, request.query.get("marker", "")
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        names = [one for one in names if one.startswith(prefix) and one >= marker and not one.endswith(".part")]
        entries: dict[str, str] = {}
        for one in names:
            rest = one[len(prefix) :]
            if delimiter and delimiter in rest:
                below = xml.sax.saxutils.escape(prefix + rest.split(delimiter)[0] + delimiter)
                entries[below] = f"<BlobPrefix><Name>{below}</Name></BlobPrefix>"
            else:
                entries[one] = _entry(one, folder / one)
        limit = min(int(request.query.get("maxresults") or _PAGE), _PAGE)
        after = list(entries)[limit] if len(entries) > limit else ""
        shown = "".join(list(entries.values())[:limit])
        text = (
            '<?xml version="1.0" encoding="utf-8"?>'
            f'<EnumerationResults ServiceEndpoint="{BLOB}/" ContainerName="{name}">'
            f"<Prefix>{xml.sax.saxutils.escape(prefix)}</Prefix><Blobs>{shown}</Blobs>"
            f"<NextMarker>{xml.sax.saxutils.escape(after)}</NextMarker></EnumerationResults>"
        )
        return Answer(200, text.encode(), {**_common(), "Content-Type": "application/xml"})

    def _keep_metadata(self, request: Request, path: str) -> None:
        given = {name[len(_META) :]: text for name, text in request.headers.items() if name.lower().startswith(_META)}
        if given:
            kept = self._meta / f"{path}.json"
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(given))

    def _properties(self, path: str, file: Path) -> dict[str, str]:
        kept = self._meta / f"{path}.json"
        meta: Mapping[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
        return {
            **_common(),
            "ETag": f'"{file.stat().st_mtime_ns:x}"',
            "Last-Modified": _date(file),
            "x-ms-blob-type": "BlockBlob",
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            **{_META + name: text for name, text in meta.items()},
        }


def _date(file: Path) -> str:
    return email.utils.formatdate(file.stat().st_mtime, usegmt=True)


def _common() -> dict[str, str]:
    return {
        "x-ms-version": "2023-11-03",
        "x-ms-request-id": uuid.uuid4().hex,
        "Date": email.utils.formatdate(usegmt=True),
    }


def _error(status: int, code: str) -> Answer:
    text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Answer(status, text.encode(), {**_common(), "x-ms-error-code": code, "Content-Type": "application/xml"})


def _entry(name: str, file: Path) -> str:
    size = file.stat()
    return (
        f"<Blob><Name>{xml.sax.saxutils.escape(name)}</Name><Properties><Last-Modified>{_date(file)}</Last-Modified>"
        f"<Etag>0x{size.st_mtime_ns:x}</Etag><Content-Length>{size.st_size}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties><Metadata/></Blob>"
    )

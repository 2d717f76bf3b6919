"""The record of every request, as JSON lines; no credential is written into it."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

from aml_emulator.messages import Request

_BODY_LIMIT = 200_000  # characters


class Record:
    """Appends to a file.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._count = 0

    def add(self, request: Request, status: int | None, fault: str | None = None) -> None:
        """Writes one down.

        Args:
            request: As it came.
            status: Of the answer; None, if the connection was cut.
            fault: The fault that spoilt it, if any.
        """
        more: dict[str, Any] = {"fault": fault} if fault else {}
        if request.body[:1] in (b"{", b"[") and len(request.body) < _BODY_LIMIT:
            more["body"] = request.body.decode("utf8", "replace")
        query = re.sub(r"sig=[^&]*", "sig=..", request.raw_query)
        agent = request.headers.get("User-Agent", "")[:60]
        scheme = request.headers.get("Authorization", "").split(" ")[0]
        self._write(
            m=request.method,
            host=request.host,
            path=request.path,
            q=query,
            status=status,
            ua=agent,
            auth=scheme,
            **more,
        )

    def add_connection(self, host: str, status: int, method: str = "CONNECT", agent: str = "") -> None:
        """Writes down that something asked the proxy for a host."""
        self._write(m=method, host=host, path="", q="", status=status, ua=agent[:60], refused=status == 403)

    def _write(self, **entry: Any) -> None:
        with self._lock:
            self._count += 1
            self._file.write(json.dumps({"seq": self._count, "t": round(time.time(), 3), **entry}) + "\n")

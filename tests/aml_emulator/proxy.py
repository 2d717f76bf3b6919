"""The proxy that clients are sent through: Azure's hosts are the emulator itself, every other one is refused.

Its port also serves the managed identity's endpoint and the control surface.
"""

from __future__ import annotations

import contextlib
import select
import socket
import urllib.parse
from collections.abc import Callable
from typing import Any

from aml_emulator.aad import managed_identity
from aml_emulator.cloud import is_azure
from aml_emulator.faults import Faults
from aml_emulator.messages import Answer, ServiceError, as_json
from aml_emulator.record import Record
from aml_emulator.server import Exchange
from aml_emulator.tokens import Tokens

_IDLE_S = 300.0
_PIECE = 65536
Control = Callable[[str, dict[str, Any]], Any]


class Proxy(Exchange):
    """The face without TLS."""

    record: Record
    tokens: Tokens
    faults: Faults
    control: Control
    tls_port: int

    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        allowed = is_azure(host)
        self.record.add_connection(host, 200 if allowed else 403, agent=self.headers.get("User-Agent", ""))
        if not allowed:
            self.send(_refusal(host))
            return
        self.send_response(200, "Connection established")
        self.end_headers()
        with socket.create_connection(("127.0.0.1", self.tls_port)) as behind, contextlib.suppress(OSError):
            _pump(self.connection, behind)
        self.close_connection = True

    def handle_any(self) -> None:
        target = urllib.parse.urlsplit(self.path)
        if target.netloc:  # a request by plain HTTP that was sent to a proxy: none of Azure's hosts takes those
            self.record.add_connection(target.hostname or "", 403, self.command, self.headers.get("User-Agent", ""))
            self.send(_refusal(target.hostname or ""))
            return
        request = self.read_request()
        if request.path == "/msi/token":
            fault = self.faults.take(request)
            status = self.answer_with(request, lambda one: managed_identity(one, self.tokens), fault)
            self.record.add(request, status, fault.match if fault else None)
        else:
            self.send(self._controlled(request.path.removeprefix("/_emu/"), request.json))

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = handle_any

    def _controlled(self, action: str, arguments: dict[str, Any]) -> Answer:
        try:
            return as_json(type(self).control(action, arguments))
        except ServiceError as error:
            return error.answer
        except (KeyError, TypeError, ValueError) as error:
            return as_json({"error": repr(error)}, 400)


def _refusal(host: str) -> Answer:
    return as_json({"error": f"{host} is outside the emulated cloud"}, 403, Connection="close")


def _pump(one: socket.socket, other: socket.socket) -> None:
    ends = {one: other, other: one}
    while True:
        readable, _, _ = select.select(list(ends), [], [], _IDLE_S)
        if not readable:
            return
        for end in readable:
            if not (piece := end.recv(_PIECE)):
                return
            ends[end].sendall(piece)


def proxy_face(record: Record, tokens: Tokens, faults: Faults, control: Control, tls_port: int) -> type[Proxy]:
    """Returns the handler class, bound to what it needs."""
    bound = {"record": record, "tokens": tokens, "faults": faults, "tls_port": tls_port}
    bound |= {"control": staticmethod(control)}
    return type("BoundProxy", (Proxy,), bound)

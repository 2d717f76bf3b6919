"""HTTP over TLS: reads requests, has them answered, spoils the answers that a fault asks for, records all."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
import traceback
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aml_emulator.faults import Fault, Faults
from aml_emulator.messages import Answer, Request, ServiceError, as_json
from aml_emulator.record import Record

_IDLE_S = 300.0
Handler = Callable[[Request], Answer]


class Exchange(BaseHTTPRequestHandler):
    """One connection; what both faces share."""

    protocol_version = "HTTP/1.1"
    server_version = "aml-emulator"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def read_request(self) -> Request:
        target = urllib.parse.urlsplit(self.path)
        return Request(
            method=self.command,
            host=self.headers.get("Host", "").split(":")[0],
            path=urllib.parse.unquote(target.path),
            raw_query=target.query,
            query=dict(urllib.parse.parse_qsl(target.query, keep_blank_values=True)),
            headers=self.headers,  # type: ignore[arg-type] # a Message is a mapping without regard to case
            body=self._read_body(),
        )

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, answer: Answer, *, half: bool = False) -> None:
        self.send_response(answer.status)
        for name, text in answer.headers.items():
            self.send_header(name, text)
        if not any(name.lower() == "content-length" for name in answer.headers):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if half else answer.body)
        self.wfile.flush()

    def answer_with(self, request: Request, answered: Handler, fault: Fault | None) -> int | None:
        """Answers as the service does, or as the fault has it; returns the status, None where there was no answer."""
        if fault is None:
            answer = answered(request)
            self.send(answer)
            return answer.status
        time.sleep(fault.delay_s)
        cut = fault.reset or fault.silent
        answer = answered(request) if fault.handled or not (cut or fault.answers) else None
        if fault.silent:
            select.select([self.connection], [], [], _IDLE_S)  # readable when the client has gone away
        if cut:
            self._break()
            return None
        if fault.answers:
            headers = {name: str(text) for name, text in fault.headers.items()}
            error = {"error": {"code": fault.code, "message": fault.message}, "error_code": fault.code}
            spoilt = as_json(error | {"message": fault.message}, fault.status)
            self.send(Answer(spoilt.status, spoilt.body, {**spoilt.headers, **headers}))
            return fault.status
        assert answer is not None
        self.send(answer, half=fault.truncate)
        if fault.truncate:
            self._break()
        return answer.status

    def _break(self) -> None:
        """Resets the connection, as a failing balancer does: no goodbye of TLS or of TCP."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Front(Exchange):
    """The TLS face."""

    answer: Handler
    faults: Faults
    record: Record

    def handle_any(self) -> None:
        request = self.read_request()
        fault = self.faults.take(request)
        status: int | None = None
        try:
            status = self.answer_with(request, self._answer, fault)
        except (BrokenPipeError, ConnectionError, ssl.SSLError):
            self.close_connection = True
        finally:
            self.record.add(request, status, fault.match if fault else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_any

    def _answer(self, request: Request) -> Answer:
        try:
            return type(self).answer(request)
        except ServiceError as error:
            return error.answer
        except Exception as error:
            traceback.print_exc()
            return as_json({"error": {"code": "EmulatorError", "message": repr(error)}}, 500)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class _TlsServer(_Server):
    context: ssl.SSLContext

    def get_request(self) -> tuple[Any, Any]:
        plain, address = super().get_request()
        plain.settimeout(_IDLE_S)
        return self.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address


def tls_server(
    certificate: Path, answer: Handler, faults: Faults, record: Record, port: int = 0
) -> ThreadingHTTPServer:
    """Returns a server on 127.0.0.1 that answers for every host of the cloud."""
    face = type("BoundFront", (Front,), {"answer": staticmethod(answer), "faults": faults, "record": record})
    server = _TlsServer(("127.0.0.1", port), face)
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(certificate)
    return server


def plain_server(face: type[Exchange], port: int = 0) -> ThreadingHTTPServer:
    """Returns a server on 127.0.0.1 without TLS."""
    return _Server(("127.0.0.1", port), face)

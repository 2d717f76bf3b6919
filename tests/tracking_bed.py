"""What the tracking tests share: a real MLflow server, and a proxy before it that misbehaves on demand."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = int | Literal["reset", "lost reply", "silent"]
"""A status to answer with, a connection cut before, one cut after the server did its work, or no answer ever."""


@dataclass
class Seen:
    """A request that reached the proxy, and what it was answered: a status, or a fault."""

    method: str
    path: str
    answer: Fault

    @property
    def name(self) -> str:
        return f"{self.method} {self.path.partition('?')[0].rpartition('/mlflow/')[2]}"


@dataclass
class Proxy:
    """A proxy on loopback. ``fault`` decides about each request; ``away`` refuses connections altogether."""

    upstream: int
    port: int = 0
    delay_s: float = 0.0
    away: bool = False
    fault: Callable[[str, str], Fault | None] = lambda method, path: None
    seen: list[Seen] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def names(self, answer: int = 200) -> list[str]:
        """What was asked and answered so, in order."""
        return [seen.name for seen in list(self.seen) if seen.answer == answer]

    def fail_first(self, faults: list[Fault], where: str = "") -> None:
        """Meet the first requests whose path has ``where`` in it with these faults."""
        left = list(faults)

        def fault(method: str, path: str) -> Fault | None:
            return left.pop(0) if left and where in path else None

        self.fault = fault


@contextmanager
def proxy_before(upstream: int) -> Iterator[Proxy]:
    """A proxy before a server on loopback."""
    proxy = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            if proxy.away:
                self.close_connection = True
                return
            super().handle_one_request()

        def _pass(self) -> None:
            body = self._body()
            time.sleep(proxy.delay_s)
            fault = "reset" if proxy.away else proxy.fault(self.command, self.path)
            if fault == "reset":
                proxy.seen.append(Seen(self.command, self.path, fault))
                self.close_connection = True
                return
            if fault == "silent":
                proxy.seen.append(Seen(self.command, self.path, fault))
                proxy.closed.wait()
                self.close_connection = True
                return
            if isinstance(fault, int):
                proxy.seen.append(Seen(self.command, self.path, fault))
                self._answer(fault, [], b"try again")
                return
            connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            headers |= {"Host": f"127.0.0.1:{proxy.upstream}", "Content-Length": str(len(body))}
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            connection.close()
            proxy.seen.append(Seen(self.command, self.path, fault or reply.status))
            if fault == "lost reply":
                self.close_connection = True
                return
            self._answer(reply.status, reply.getheaders(), content)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away is none of the tests' business."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closed.set()
        server.shutdown()
        server.server_close()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """A real ``mlflow server`` on loopback; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "server.log").open("wb")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        cwd=folder,
        start_new_session=True,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.2)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        log.close()

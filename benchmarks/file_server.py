"""The least that a file server over HTTP can be: GET and PUT of files below a folder, on connections that stay open.

::

    python benchmarks/file_server.py FOLDER             # prints its port
"""

from __future__ import annotations

import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CHUNK = 2**20


class FileHandler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # the head and a small body in one packet
    folder: Path

    def do_GET(self) -> None:
        """Sends a file."""
        with (self.folder / self.path.lstrip("/")).open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(file.seek(0, 2)))
            self.end_headers()
            file.seek(0)
            shutil.copyfileobj(file, self.wfile, _CHUNK)

    def do_PUT(self) -> None:
        """Stores a file."""
        target = self.folder / self.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        left = int(self.headers["Content-Length"])
        with target.open("wb") as file:
            while left:
                data = self.rfile.read(min(left, _CHUNK))
                file.write(data)
                left -= len(data)
        self.send_response(204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


if __name__ == "__main__":
    FileHandler.folder = Path(sys.argv[1])
    with _Server(("127.0.0.1", 0), FileHandler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()

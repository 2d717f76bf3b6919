"""Prefect's temporary server, for a sweep that was told of no other: out of Ctrl-C's reach, and never left behind.

Prefect would start one by itself, in the terminal's foreground group and with the terminal as its output: Ctrl-C
then ends it before the flow, which retries each of its last words for minutes, and a script that is killed outright
leaves it running for good. This one has a session and a log of its own, and ends when its parent's pipe does.

As a program, `python -m plato_core.prefect_server SOCKET`, it is the server.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from plato_core.errors import SweepError

STOP_S = 5.0
# What Prefect gives the server that it starts by itself: no UI, and none of the services that only schedules need.
_ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class TemporaryServer:
    """A Prefect server of this process alone, on a free port of 127.0.0.1. Use as a context manager.

    Args:
        log: File for whatever it prints.

    Attributes:
        api_url: Its address, for `PREFECT_API_URL`.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        with socket.create_server(("127.0.0.1", 0)) as listening, log.open("wb") as output:
            self.api_url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-m", "plato_core.prefect_server", str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | _ENVIRONMENT,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, timeout_s: float) -> None:
        """Waits until it answers.

        Raises:
            SweepError: It ended instead, or took longer.
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            # The socket listens already: the request waits in it until the server takes it up.
            opener.open(f"{self.api_url}/health", timeout=timeout_s).close()
        except OSError as error:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise SweepError(
                f"Prefect's temporary server did not start within {timeout_s:g} s ({lines[-1] if lines else error}); "
                "start one with `prefect server start` and set PREFECT_API_URL to its address"
            ) from error

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Serves on the listening socket whose descriptor is the first argument, until the parent is gone."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    _place_database()
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, lifespan="on", log_level="error", access_log=False
    )
    server = uvicorn.Server(config)
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
    sys.exit(0 if server.started else 1)


def _place_database() -> None:
    from prefect.settings import get_current_settings

    from plato_core.prefect_database import NAME, put_in_place

    settings = get_current_settings()
    url = settings.server.database.connection_url
    if url is not None and url.get_secret_value() == f"sqlite+aiosqlite:///{settings.home}/{NAME}":
        put_in_place(settings.home)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_S)
    os._exit(1)  # a request that never ends holds up the orderly end


if __name__ == "__main__":
    main()

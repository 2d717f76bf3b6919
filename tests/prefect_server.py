"""A Prefect server of a test's own, started as the local stack starts its own, and what tests ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import loopback
from prefect_api import ask
from stack import free_ports
from waiting import wait_until

from plato_core.stack.parts import PREFECT, client_environment, parts
from plato_core.stack.settings import StackSettings


class PrefectServer:
    """A server on a free port of 127.0.0.1, with its data in a folder. Use as a context manager.

    Args:
        folder: For its data and its log.
        variables: Further ones of its environment.

    Attributes:
        folder: Of its data and its log.
        api_url: Its address.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self._settings = StackSettings(folder=folder, prefect_port=free_ports(1)[0])
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        self._variables = variables
        self.api_url = self._settings.api_url
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PrefectServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that talks to it."""
        return client_environment(self._settings, os.environ)

    def start(self) -> None:
        part = parts(self._settings, os.environ)[PREFECT]
        with part.log.open("ab") as log:
            self._process = subprocess.Popen(
                part.command, env=part.environment | self._variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(self._answers, "the Prefect server answers")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def request(self, method: str, path: str, body: Any = None) -> Any:
        return ask(f"{self.api_url}{path}", method, body)

    def run(self, *command: str, cwd: Path, text_in: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a Python module or file as its user, to its end."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            env=self.environment | {"PWD": str(cwd)},  # as a shell sets it; `prefect.yaml` reads it
            input=text_in,
            capture_output=True,
            text=True,
            timeout=400.0,
            check=False,
        )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the Prefect server ended; its log is in its folder"
        try:
            return loopback.request("GET", f"{self.api_url}/health", timeout=5.0).is_success
        except httpx.TransportError:
            return False

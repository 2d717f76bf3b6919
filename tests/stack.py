"""A local stack of a test's own: `plato up` in a folder, on free ports, and `plato down` after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_api import ask

from plato_core.processes import kill
from plato_core.stack.processes import SUPERVISOR, State, marked
from plato_core.stack.settings import MLFLOW, PREFECT, WORKER, StackSettings

ROOT = Path(__file__).parents[1]
_UP_S = 240.0
_DOWN_S = 120.0
_MEMBERS = (SUPERVISOR, WORKER, PREFECT, MLFLOW)


@dataclass
class Stack:
    """What `plato up` and `plato down` are run with, and what a test reads of it.

    Args:
        project: The working folder; it holds `prefect.yaml`.
        folder: The stack's own folder.
        prefect_port: Of the Prefect server.
        mlflow_port: Of the MLflow server.
        variables: Further ones of its environment.
    """

    project: Path
    folder: Path
    prefect_port: int
    mlflow_port: int
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> StackSettings:
        """What `plato up` reads from the variables."""
        return StackSettings(folder=self.folder, prefect_port=self.prefect_port, mlflow_port=self.mlflow_port)

    @property
    def prefect_url(self) -> str:
        return self.settings.prefect_url

    @property
    def api_url(self) -> str:
        return self.settings.api_url

    @property
    def mlflow_url(self) -> str:
        return self.settings.mlflow_url

    @property
    def environment(self) -> dict[str, str]:
        """Of a shell in which the printed `export` line was typed; it makes `plato` and `prefect` find this stack."""
        foreign = ("PREFECT_", "PLATO_", "MLFLOW_", "RAY_", "PYTEST_")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "PLATO_STACK_FOLDER": str(self.folder),
            "PLATO_STACK_PREFECT_PORT": str(self.prefect_port),
            "PLATO_STACK_MLFLOW_PORT": str(self.mlflow_port),
            "PREFECT_API_URL": self.api_url,
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "PREFECT_HOME": str(self.folder.parent / f"{self.folder.name}-shell"),  # not the user's, not the server's
            "DO_NOT_TRACK": "1",
            **self.variables,
        }

    def plato(self, *arguments: str, timeout_s: float = _UP_S) -> subprocess.CompletedProcess[str]:
        """Runs `plato` in the project's folder, to its end."""
        return self._run("-m", "plato_core.cli", *arguments, timeout_s=timeout_s)

    def prefect(self, *arguments: str, timeout_s: float = _UP_S) -> subprocess.CompletedProcess[str]:
        """Runs `prefect` in the project's folder, to its end."""
        return self._run("-m", "prefect", *arguments, timeout_s=timeout_s)

    def up(self) -> str:
        """Runs `plato up`, which must succeed, and returns what it said."""
        done = self.plato("up")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def down(self) -> str:
        """Runs `plato down`, which must succeed, and returns what it said."""
        done = self.plato("down", timeout_s=_DOWN_S)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Asks Prefect's API."""
        return ask(f"{self.api_url}{path}", method, body)

    @property
    def state(self) -> State:
        """What the stack's state file says."""
        state = State.read(self.folder)
        assert state is not None
        return state

    def processes(self) -> list[str]:
        """Returns the command lines of all that runs of the stack, runs of its worker with it."""
        lines = []
        for part in _MEMBERS:
            for process in marked(part, self.folder):
                with contextlib.suppress(Exception):
                    lines.append(" ".join(process.cmdline()))
        return lines

    def close(self) -> None:
        """Ends it whatever state it is in."""
        try:
            self.down()
        finally:
            for part in _MEMBERS:
                kill(marked(part, self.folder))

    def _run(self, *command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that nothing listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listening.getsockname()[1] for listening in sockets]


def new_stack(folder: Path, project: Path, **variables: str) -> Stack:
    """Returns a stack that is not up, with its data in `folder`/stack."""
    prefect_port, mlflow_port = free_ports(2)
    return Stack(project, folder / "stack", prefect_port, mlflow_port, variables)


@contextlib.contextmanager
def running_stack(folder: Path, project: Path, **variables: str) -> Iterator[Stack]:
    """A stack that is up, with the deployments of a project's `prefect.yaml`, and all gone afterwards.

    Args:
        folder: An empty folder for its data.
        project: The folder to run `plato up` in; what runs leave behind is left there.
        variables: Of its environment, such as `PLATO_STACK_CONCURRENCY_LIMIT`.
    """
    stack = new_stack(folder, project, **variables)
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


def project_copy(folder: Path) -> Path:
    """Returns a copy of what a worker needs of this project, so that runs leave nothing in the checkout."""
    (project := folder / "project").mkdir()
    shutil.copy(ROOT / "prefect.yaml", project)
    for name in ("flows", "deployments"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    return project

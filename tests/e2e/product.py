"""Running the product's scripts and servers as processes, and looking at what they leave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from waiting import wait_until

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "flows" / "sweep_and_fetch.py"
# What runs is this checkout, and trials' processes import the environments that stand here.
PYTHONPATH = f"{Path(__file__).parent}{os.pathsep}{ROOT}"
# Set in each script's environment, which all that it starts inherits.
MARK = "PLATO_E2E_RUN"
# Small enough that an iteration takes a fraction of a second.
# 501: more than CartPole-v1 pays, as a fast machine learns it in few iterations.
SHORT_CONFIG = """\
stop_reward: 501
hyperparameters:
  train_batch_size: 512
  sgd_minibatch_size: 128
  num_sgd_iter: 2
  num_envs_per_env_runner: 8
  model_config: {fcnet_hiddens: [16], fcnet_activation: tanh, vf_share_layers: false}
"""
DONE_S = 400.0


def marked(mark: str) -> list[psutil.Process]:
    """Returns the live processes that carry a mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass
class Script:
    """One run of a script, as its own session leader: its process group is what a terminal sends Ctrl-C to."""

    folder: Path
    process: subprocess.Popen[bytes]
    mark: str
    logs: Path

    @property
    def stdout(self) -> str:
        return (self.logs / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.logs / "stderr").read_text()

    @property
    def said(self) -> str:
        return f"exit code {self.process.poll()}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    @property
    def store(self) -> str:
        """The URI of the local MLflow store."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def wait(self, timeout_s: float = DONE_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {timeout_s:g} s; {self.said}") from None

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C: SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def left(self) -> list[str]:
        """Returns the command lines of what still runs of all that the script ever started."""
        lines = []
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                lines.append(" ".join(process.cmdline()))
        return lines

    def listens_on(self) -> set[str]:
        """Returns the addresses on which anything that the script started takes connections."""
        addresses = set()
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                for connection in process.net_connections(kind="inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        addresses.add(connection.laddr.ip.removeprefix("::ffff:"))
        return addresses

    def wait_for_training(self) -> None:
        """Waits until each of two trials has written a checkpoint."""

        def written() -> bool:
            assert self.process.poll() is None, self.said
            manifests = self.folder.glob(".plato/sweeps/*/tune/*/checkpoint_*/manifest.json")
            return len({path.parents[1] for path in manifests}) >= 2

        wait_until(written, "each trial has a checkpoint", DONE_S)

    @property
    def sweep_dir(self) -> Path:
        """The one sweep's folder."""
        (folder,) = self.folder.glob(".plato/sweeps/*")
        return folder


@dataclass
class Product:
    """The product in a folder, with an environment.

    Args:
        folder: The working directory, empty at first.
        environment: Of every process.
        short_config: A config file outside of that folder.
    """

    folder: Path
    environment: Mapping[str, str]
    short_config: Path
    scripts: list[Script] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for script in self.scripts:
            for process in marked(script.mark):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            script.process.wait()

    def start(self, *arguments: str | Path, program: Path = SWEEP, **variables: str) -> Script:
        """Starts the script and returns at once."""
        mark = f"{self.folder}#{len(self.scripts)}"
        logs = self.folder.parent / f"{self.folder.name}-logs-{len(self.scripts)}"
        logs.mkdir()
        with (logs / "stdout").open("wb") as out, (logs / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, str(program), *map(str, arguments)],
                cwd=self.folder,
                env={**self.environment, MARK: mark, "PYTHONPATH": PYTHONPATH, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.scripts.append(script := Script(self.folder, process, mark, logs))
        return script

    def run(self, *arguments: str | Path, timeout_s: float = DONE_S, program: Path = SWEEP, **variables: str) -> Script:
        """Runs the script to its end."""
        script = self.start(*arguments, program=program, **variables)
        script.wait(timeout_s)
        return script

    def short(self, *arguments: str | Path, iterations: int = 4) -> list[str | Path]:
        """Returns the arguments of a sweep of two trials that takes seconds."""
        return [
            "--test-local", "--config", self.short_config, "--num-tune-samples", "2", "--seed", "3",
            "--max-iterations", str(iterations), "--perturbation-interval", "2", *arguments,
        ]  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Server:
    """A real server as a process in its own session, which answers at `url` from construction on.

    Args:
        command: Arguments of this Python.
        url: Where it answers with 200.
        log: Its output.
        environment: Its environment.
    """

    def __init__(self, command: list[str], url: str, log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=log.parent,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(lambda: self._answers(url), f"{url} answers; {log.read_text()[-2000:]}")
        except BaseException:
            self.kill()
            raise

    def _answers(self, url: str) -> bool:
        assert self.process.poll() is None, f"the server ended with exit code {self.process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=5.0):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Ends it and its workers at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int, environment: Mapping[str, str]) -> Iterator[Server]:
    """A tracking server with its database and its artifacts in a folder."""
    folder.mkdir(exist_ok=True)
    server = Server(
        [
            "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/server.db",
            "--artifacts-destination", str(folder / "artifacts"),
        ],
        f"http://127.0.0.1:{port}/health",
        folder / "server.log",
        {**environment, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    try:
        yield server
    finally:
        server.kill()

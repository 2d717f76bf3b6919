"""Runs and checkpoints in a real MLflow store, as a sweep leaves them."""

import contextlib
import enum
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.tracking import MlflowClient
from waiting import wait_until

from plato_core.manifest import Manifest, write_manifest
from plato_core.tracking.transfer import upload_checkpoint


def make_checkpoint(
    directory: Path, iteration: int, score: float | None = None, files: dict[str, bytes] | None = None
) -> Manifest:
    """Write a checkpoint's folder with its manifest."""
    content = {"algorithm_state.pkl": f"state {iteration}".encode(), "learner/module.pkl": bytes(5000)}
    for path, data in (content if files is None else files).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return write_manifest(
        directory,
        sweep_id="sweep",
        trial_id="t0",
        trial_name="trial",
        iteration=iteration,
        metric="episode_reward_mean",
        score=score,
        hyperparameters={"lr": 1e-4},
        versions={"ray": "2.60.0"},
    )


@dataclass
class Sweep:
    """A parent run, and what makes children of it."""

    client: MlflowClient
    experiment_id: str
    parent_run_id: str
    scratch: Path

    def trial(
        self,
        name: str,
        reward: float | None,
        status: str = "FINISHED",
        checkpoints: dict[int, float | None] | None = None,
        start_time: int | None = None,
    ) -> str:
        """Log a child run with its last reward and its checkpoints (iteration to score); return its id."""
        tags = {"mlflow.parentRunId": self.parent_run_id, "trial_name": name}
        run = self.client.create_run(self.experiment_id, start_time=start_time, tags=tags, run_name=name)
        run_id = run.info.run_id
        if reward is not None:
            self.client.log_metric(run_id, "episode_reward_mean", 1.0, step=1)
            self.client.log_metric(run_id, "episode_reward_mean", reward, step=2)
        for iteration, score in ({2: 1.0} if checkpoints is None else checkpoints).items():
            self.checkpoint(run_id, iteration, score)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    def checkpoint(
        self,
        run_id: str,
        iteration: int,
        score: float | None = None,
        files: dict[str, bytes] | None = None,
    ) -> Manifest:
        """Upload a complete checkpoint."""
        folder = self.scratch / run_id / str(iteration)
        folder.mkdir(parents=True)
        manifest = make_checkpoint(folder, iteration, score, files)
        upload_checkpoint(self.client, run_id, folder, manifest)
        return manifest


def new_sweep(client: MlflowClient, scratch: Path, experiment: str) -> Sweep:
    """Make an experiment, in the store's own place for artifacts, with a parent run."""
    experiment_id = client.create_experiment(experiment)
    parent = client.create_run(experiment_id, run_name="the sweep")
    return Sweep(client, experiment_id, parent.info.run_id, scratch)


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run `mlflow server` with its artifacts behind it, and give its URI."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "served"), "--workers", "1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: _answers(uri) or process.poll() is not None, "the MLflow server answers")
        assert process.poll() is None, (folder / "server.log").read_text()
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(uri: str) -> bool:
    try:
        return urllib.request.urlopen(f"{uri}/health", timeout=1).status == 200
    except OSError:
        return False


class Fault(enum.Enum):
    """What may go wrong with one answer."""

    BUSY = enum.auto()
    """503 instead of it."""
    CUT = enum.auto()
    """The connection is closed in the middle of it."""


@contextlib.contextmanager
def faulty_proxy(uri: str, faults: dict[str, list[Fault]], authorization: str | None = None) -> Iterator[str]:
    """Pass requests on to `uri`; those whose path ends with a key of `faults` first meet those, in turn.

    Args:
        uri: Of the server behind it.
        faults: What goes wrong.
        authorization: A header that each request needs.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward()

        def do_POST(self) -> None:
            self.forward()

        def do_PUT(self) -> None:
            self.forward()

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = urllib.request.Request(uri + self.path, body or None, method=self.command)
            request.add_header("Content-Type", self.headers.get("Content-Type") or "application/json")
            if authorization not in (None, self.headers.get("Authorization")):
                self.send_error(401)
                return
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    status, data = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, data = error.code, error.read()
            waiting = next((queue for end, queue in faults.items() if self.path.endswith(end)), [])
            fault = waiting.pop(0) if waiting else None
            self.send_response(503 if fault is Fault.BUSY else status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if fault is Fault.CUT else data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)

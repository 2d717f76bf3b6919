"""A Prefect server, an emulated workspace, and a worker of type `azure-ml` between them, for a project of small flows.

The emulator runs the jobs on this machine, with this interpreter as their image.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from aml_bed import Emulator, inherited_env
from prefect_api import ask
from prefect_server import PrefectServer
from stack import ROOT
from waiting import wait_until

POOL = "aml"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_ENDS_WITHIN_S = 240.0

FLOW = '''\
import time

from prefect import flow, get_run_logger


@flow(name="small", persist_result=False)
def small(seconds: float = 0.0, fail: bool = False, experiment_name: str = "small-flows", track: bool = False):
    """Says what it does on both ways, and ends as it is told."""
    get_run_logger().info("logged by the flow")
    print("printed by the flow", flush=True)
    time.sleep(seconds)
    if track:
        import aml_tracked

        aml_tracked.track_two_trials()
    if fail:
        raise ValueError("told to fail")
'''


class GuardedServer(PrefectServer):
    """A server that asks for a password, as one that clusters reach should.

    Args:
        folder: For its data and its log.
        auth_string: `user:password`.
    """

    def __init__(self, folder: Path, auth_string: str) -> None:
        super().__init__(folder, PREFECT_SERVER_API_AUTH_STRING=auth_string)
        self._auth_string = auth_string

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PREFECT_API_AUTH_STRING": self._auth_string}

    def request(self, method: str, path: str, body: Any = None) -> Any:
        user, _, password = self._auth_string.partition(":")
        return ask(f"{self.api_url}{path}", method, body, (user, password))


@dataclass
class Bed:
    """What stands, and what tests ask of it.

    Args:
        folder: Of the project.
        server: Prefect's.
        emulator: The workspace's.
        variables: Further ones of the worker's environment; one that is None is taken away.
    """

    folder: Path
    server: PrefectServer
    emulator: Emulator
    variables: dict[str, str | None] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of a shell in which the worker and `prefect` are typed."""
        own = {name: value for name, value in self.server.environment.items() if name.startswith("PREFECT_")}
        found = {
            **inherited_env(),
            **self.emulator.env(),
            **own,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONPATH": f"{ROOT}:{plugin(self.folder.parent)}",
            "PYTHONUNBUFFERED": "1",
            **self.variables,
        }
        return {name: value for name, value in found.items() if value is not None}

    @contextlib.contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A running worker, that ends with the block."""
        log = self.folder.parent / "worker.log"
        before = len(log.read_text()) if log.exists() else 0
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "aml"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            wait_until(lambda: "started!" in log.read_text()[before:], "the worker starts")
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def prefect(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Runs `prefect` in the project's folder; it must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, parameters: dict[str, Any] | None = None, **job_variables: Any) -> str:
        """Asks for a run, and returns its id."""
        deployment = self.server.request("GET", "/deployments/name/small/aml")
        body = {"parameters": parameters or {}, "job_variables": job_variables, "state": {"type": "SCHEDULED"}}
        return self.server.request("POST", f"/deployments/{deployment['id']}/create_flow_run", body)["id"]

    def cancel(self, run_id: str) -> None:
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.server.request("POST", f"/flow_runs/{run_id}/set_state", {"state": state})

    def retry(self, run_id: str) -> None:
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        self.server.request("POST", f"/flow_runs/{run_id}/set_state", {"state": state})

    def run(self, run_id: str) -> dict[str, Any]:
        return self.server.request("GET", f"/flow_runs/{run_id}")

    def state_of(self, run_id: str) -> str:
        return self.run(run_id)["state_name"]

    def ended(self, run_id: str, within_s: float = _ENDS_WITHIN_S) -> dict[str, Any]:
        """The run, at its end."""
        wait_until(lambda: self.run(run_id)["state_type"] in FINAL, "the flow run ends", within_s)
        return self.run(run_id)

    def job_ended(self, name: str, within_s: float = _ENDS_WITHIN_S) -> str:
        """The status of the job, at its end."""
        ends = ("Completed", "Failed", "Canceled")
        wait_until(lambda: self.emulator.job(name)["status"] in ends, "the job ends", within_s)
        return self.emulator.job(name)["status"]

    def log_of(self, run_id: str) -> list[dict[str, Any]]:
        query = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return self.server.request("POST", "/logs/filter", query)

    def states_of(self, run_id: str) -> list[str]:
        """The names of all states that the run ever had."""
        found = self.server.request("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]


def project(folder: Path, emulator: Emulator, **job_variables: Any) -> Path:
    """Writes a project with one flow and its deployment `small/aml`, and returns its folder."""
    (made := folder / "project" / "flows").mkdir(parents=True)
    (made / "small.py").write_text(FLOW)
    (image := made.parent / "image").mkdir()
    (image / "Dockerfile").write_text("FROM python:3.11\n")
    emulator.workspace_config(folder / ".azureml")  # found from the project's folder
    settings = {
        "environment": "image",
        "poll_interval_s": 0.5,
        "env": {"PYTHONPATH": str(ROOT)},  # the image holds this checkout
        **job_variables,
    }
    (made.parent / "prefect.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
                "deployments": [
                    {
                        "name": "aml",
                        "entrypoint": "flows/small.py:small",
                        "work_pool": {"name": POOL, "job_variables": settings},
                    }
                ],
            }
        )
    )
    return made.parent


def plugin(folder: Path) -> Path:
    """Returns a folder for `PYTHONPATH` that tells Prefect of this checkout's worker, as an installation would.

    It is empty where this checkout, or another with the same entry points, is what is installed.
    """
    found = folder / "plugin"
    if found.is_dir():
        return found
    found.mkdir(parents=True)
    if not any(point.value == "plato_core.aml.worker" for point in entry_points(group="prefect.collections")):
        import os

        from setuptools import build_meta

        here = Path.cwd()
        os.chdir(ROOT)
        try:
            build_meta.prepare_metadata_for_build_editable(str(found))
        finally:
            os.chdir(here)
    return found

"""The program of an Azure ML job: it executes a flow run of a real Prefect server; its exit code says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from aml_bed import running_emulator
from prefect_server import PrefectServer
from stack import ROOT, free_ports
from thorough import thorough
from waiting import wait_until

FLOW = """\
import os, time
from pathlib import Path
from prefect import flow

@flow(log_prints=True)
def tiny(how: str):
    told = {name: value for name, value in os.environ.items() if name.startswith(("PLATO", "RAY_A", "TZ"))}
    Path("told.txt").write_text("".join(f"{name}={value}\\n" for name, value in sorted(told.items())))
    if how == "fail":
        raise ValueError("it is broken")
    if how == "sign in":
        assert os.environ["PREFECT_API_AUTH_STRING"].startswith("somebody:")
    if how == "die":
        os._exit(3)
    if how == "wait" and not Path("again").exists():
        time.sleep(200)
    if how == "stop in order":
        try:
            time.sleep(200)
        finally:
            Path("in order").touch()
    if how == "ray":
        import ray
        ray.init(address=os.environ["PLATO_RAY_ADDRESS"], logging_level="ERROR")
        while len([node for node in ray.nodes() if node["Alive"]]) < int(os.environ["PLATO_RAY_NODES"]):
            time.sleep(0.2)
        nodes = sorted(node["NodeManagerAddress"] for node in ray.nodes())
        Path("nodes.txt").write_text(" ".join(nodes))
        if Path("stay").exists():
            time.sleep(200)
"""


@dataclass
class Bed:
    """A Prefect server with a deployment of a small flow, and the folder that a job would start in."""

    server: PrefectServer
    folder: Path
    deployment: str
    ray_folder: Path

    def flow_run(self, how: str) -> str:
        """Asks for a run, as a deployment's worker would find it."""
        made = self.server.request(
            "POST", f"/deployments/{self.deployment}/create_flow_run", {"parameters": {"how": how}}
        )
        return made["id"]

    def state(self, flow_run: str) -> str:
        return self.server.request("GET", f"/flow_runs/{flow_run}")["state"]["type"]

    def variables(self, flow_run: str, **given: str) -> dict[str, str]:
        """The environment of one node of a job, as the worker and Azure ML set it."""
        environment = {name: value for name, value in self.server.environment.items() if not name.startswith("RAY_")}
        return environment | {
            "PYTHONPATH": str(ROOT),
            "PREFECT__FLOW_RUN_ID": flow_run,
            "PREFECT_API_URL": self.server.api_url,
            "PREFECT_HOME": str(self.folder / "home"),
            "PLATO_AML_RAY_VERSION": version("ray"),
            "RAY_TMPDIR": str(self.ray_folder),  # a Ray of another test must not believe that this one is its own
            "AZURE_ML_OUTPUT_sweeps": str(self.folder / "sweeps"),
            **given,
        }

    def start(self, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "plato_core.aml.entry"],
            cwd=self.folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, flow_run: str, **given: str) -> tuple[int, str]:
        """Runs a job of one node to its end; its exit code and its last line."""
        process = self.start(self.variables(flow_run, **given))
        said, _ = process.communicate(timeout=120)
        print(said)
        return process.returncode, said.splitlines()[-1]

    def told(self) -> dict[str, str]:
        """What the flow found in its environment."""
        return dict(line.split("=", 1) for line in (self.folder / "told.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture
def bed(server: PrefectServer, tmp_path: Path) -> Iterator[Bed]:
    (tmp_path / "small.py").write_text(FLOW)
    (tmp_path / "sweeps").mkdir()
    flow = server.request("POST", "/flows/", {"name": "tiny"})
    wanted: dict[str, Any] = {
        "name": f"job-{uuid4()}",
        "flow_id": flow["id"],
        "entrypoint": "small.py:tiny",
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
        "enforce_parameter_schema": False,
    }
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as short:  # for sockets' paths
        yield Bed(server, tmp_path, server.request("POST", "/deployments/", wanted)["id"], Path(short))


def test_a_completed_run_is_a_job_that_succeeded(bed: Bed) -> None:
    code, line = bed.run(flow_run := bed.flow_run("work"))
    assert (code, bed.state(flow_run)) == (0, "COMPLETED")
    assert line == f"plato: flow run {flow_run} is Completed"
    told = bed.told()
    assert told["PLATO_STORAGE_PATH"] == str(bed.folder / "sweeps")
    assert told["PLATO_LOCAL_PATH"] == "outputs/model_checkpoints"
    assert (told["PLATO_RAY_ADDRESS"], told["PLATO_RAY_NODES"], told["TZ"]) == ("local", "1", "UTC")


def test_what_the_user_has_set_stays(bed: Bed) -> None:
    assert bed.run(bed.flow_run("work"), PLATO_STORAGE_PATH="elsewhere", PLATO_AML_LAUNCHER="ray")[0] == 0
    assert (bed.told()["PLATO_STORAGE_PATH"], bed.told()["PLATO_RAY_ADDRESS"]) == ("elsewhere", "auto")


def test_a_failed_run_is_a_job_that_failed(bed: Bed) -> None:
    code, line = bed.run(flow_run := bed.flow_run("fail"))
    assert (code, bed.state(flow_run)) == (1, "FAILED")
    assert "it is broken" in line


def test_a_run_whose_process_dies_is_a_job_that_failed(bed: Bed) -> None:
    code, line = bed.run(flow_run := bed.flow_run("die"))
    assert (code, bed.state(flow_run)) == (1, "CRASHED")
    assert "is Crashed" in line


def test_a_run_cancelled_in_prefect_ends_as_a_cancelled_job(bed: Bed) -> None:
    process = bed.start(bed.variables(flow_run := bed.flow_run("wait")))
    wait_until(lambda: bed.state(flow_run) == "RUNNING", "the run runs")
    bed.server.request("POST", f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
    said, _ = process.communicate(timeout=120)
    print(said)
    assert (process.returncode, bed.state(flow_run)) == (143, "CANCELLED")


def test_a_job_whose_node_is_taken_away_leaves_its_run_to_go_on_in_the_next(bed: Bed) -> None:
    process = bed.start(bed.variables(flow_run := bed.flow_run("wait")))
    wait_until(lambda: (bed.folder / "told.txt").exists(), "the run runs")
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    print(said)
    assert (process.returncode, bed.state(flow_run)) == (143, "RUNNING")
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    (bed.folder / "again").touch()
    assert bed.run(flow_run)[0] == 0
    assert bed.state(flow_run) == "COMPLETED"


def test_a_job_that_is_told_to_stop_ends_the_flow_of_a_cancelled_run_in_order(bed: Bed) -> None:
    process = bed.start(bed.variables(flow_run := bed.flow_run("stop in order")))
    wait_until(lambda: (bed.folder / "told.txt").exists(), "the run runs")
    bed.server.request("POST", f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    print(said)
    assert (process.returncode, bed.state(flow_run)) == (143, "CANCELLED")
    assert (bed.folder / "in order").exists()


def test_a_run_that_has_ended_already_is_not_executed_again(bed: Bed) -> None:
    flow_run = bed.flow_run("work")
    state = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
    bed.server.request("POST", f"/flow_runs/{flow_run}/set_state", state)
    code, line = bed.run(flow_run)
    assert (code, line) == (143, f"plato: nothing to do: flow run {flow_run} is Cancelled already")
    assert not (bed.folder / "told.txt").exists()


def test_another_version_of_ray_is_refused_before_anything_runs(bed: Bed) -> None:
    code, line = bed.run(flow_run := bed.flow_run("work"), PLATO_AML_RAY_VERSION="2.9.3")
    assert (code, bed.state(flow_run)) == (2, "SCHEDULED")
    assert f"the job's environment has Ray {version('ray')}, and the submitting side has 2.9.3" in line
    assert "az ml environment create" in line


def test_an_api_that_cannot_be_reached_is_said_to_be_so(bed: Bed) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/api"
    code, line = bed.run(bed.flow_run("work"), PREFECT_API_URL=url)
    assert code == 1
    assert line.startswith(f"plato: no Prefect API answers this job at {url}")
    assert "api_url" in line


def test_a_run_of_another_server_is_bad_input(bed: Bed) -> None:
    code, line = bed.run(str(uuid4()))
    assert (code, "has no flow run" in line) == (2, True)


def test_a_variable_that_is_missing_is_named(bed: Bed) -> None:
    environment = bed.variables(bed.flow_run("work"))
    del environment["AZURE_ML_OUTPUT_sweeps"]
    process = bed.start(environment)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "AZURE_ML_OUTPUT_sweeps is not set" in said


def test_what_signs_in_to_prefect_comes_from_the_key_vault_and_is_shown_nowhere(bed: Bed, tmp_path: Path) -> None:
    value = f"somebody:{uuid4()}"
    with running_emulator(tmp_path / "azure") as azure:
        url = azure.set_secret("prefect-auth", value)
        given = azure.env() | {"PLATO_AML_API_AUTH_SECRET": url}
        process = bed.start(bed.variables(flow_run := bed.flow_run("sign in"), **given))
        said, _ = process.communicate(timeout=120)
        assert (process.returncode, bed.state(flow_run)) == (0, "COMPLETED"), said
        assert value not in said
        missing = {"PLATO_AML_API_AUTH_SECRET": url.replace("prefect-auth", "other")}
        code, line = bed.run(bed.flow_run("work"), **given | missing)
        assert (code, "the vault has no such secret" in line) == (1, True)
        assert azure.refused() == []


class Mpi:
    """The two ranks of a job, each on a loopback address of its own, as Azure ML's MPI starts them."""

    def __init__(self, bed: Bed, how: str = "ray", at_once: int = 2, **given: str) -> None:
        port = free_ports(1)[0]
        self._bed, self.flow_run = bed, bed.flow_run(how)
        self._common = {
            "PLATO_AML_LAUNCHER": "mpi",
            "PLATO_AML_NODES": "2",
            "PLATO_AML_RAY_PORT": str(port),
            "PLATO_AML_RAY_HEAD_ARGUMENTS": "--num-cpus=1 --object-store-memory=100000000",
            "PLATO_AML_RAY_WORKER_ARGUMENTS": "--num-cpus=1 --object-store-memory=100000000",
            "AZ_BATCHAI_JOB_MASTER_NODE_IP": "127.0.0.2",
            **given,
        }
        self.ranks: list[subprocess.Popen[str]] = []
        for _ in range(at_once):
            self.start_next()

    def start_next(self) -> None:
        number = len(self.ranks)
        own = {"AZUREML_CR_NODE_RANK": str(number), "PLATO_NODE_IP": f"127.0.0.{2 + number}"}
        self.ranks.append(self._bed.start(self._bed.variables(self.flow_run, **self._common, **own)))

    def end(self, timeout_s: float = 60.0) -> list[int]:
        """Waits for the end of both ranks; their exit codes."""
        for rank in self.ranks:
            print(rank.communicate(timeout=timeout_s)[0])
        return [rank.returncode for rank in self.ranks]

    def __enter__(self) -> Mpi:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM)
        for rank in self.ranks:
            try:
                rank.wait(30)
            except subprocess.TimeoutExpired:
                rank.kill()


def test_the_ranks_of_an_mpi_job_make_one_ray_and_end_together(bed: Bed) -> None:
    with Mpi(bed) as job:
        wait_until(lambda: (bed.folder / "nodes.txt").exists(), "both nodes are there")
        assert job.end() == [0, 0]
    assert bed.state(job.flow_run) == "COMPLETED"
    assert (bed.folder / "nodes.txt").read_text() == "127.0.0.2 127.0.0.3"
    assert not _rays_of(bed)


@thorough
def test_a_rank_that_comes_when_the_work_is_done_ends_too(bed: Bed) -> None:
    with Mpi(bed, "work", at_once=1) as job:
        wait_until(lambda: bed.state(job.flow_run) == "COMPLETED", "the work is done")
        job.start_next()
        assert job.end() == [0, 0]


@thorough
def test_a_rank_whose_head_dies_fails(bed: Bed) -> None:
    (bed.folder / "stay").touch()
    with Mpi(bed) as job:
        wait_until(lambda: (bed.folder / "nodes.txt").exists(), "both nodes are there")
        head = psutil.Process(job.ranks[0].pid)
        left = head.children(recursive=True)
        head.kill()
        said, _ = job.ranks[1].communicate(timeout=60)
        for process in left:  # as the node itself would be gone
            if process.is_running():
                process.kill()
    assert job.ranks[1].returncode == 1
    assert "the head died" in said


def test_a_rank_without_a_head_gives_up(bed: Bed) -> None:
    environment = bed.variables(
        bed.flow_run("ray"),
        PLATO_AML_LAUNCHER="mpi",
        PLATO_AML_NODE_WAIT_S="1",
        PLATO_AML_RAY_PORT=str(free_ports(1)[0]),
        AZUREML_CR_NODE_RANK="1",
        AZ_BATCHAI_JOB_MASTER_NODE_IP="127.0.0.2",
    )
    process = bed.start(environment)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 found no head at 127.0.0.2" in said


def _rays_of(bed: Bed) -> list[str]:
    """What is left of a job's Ray: its processes have the job's folder of sweeps in their environment."""
    mark = str(bed.folder / "sweeps")
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AZURE_ML_OUTPUT_sweeps") == mark and process.pid != os.getpid():
                found.append(" ".join(process.cmdline())[:200])
        except (psutil.Error, OSError):
            continue
    return found

"""`--compute aml`: the flow on a laptop, with no Prefect server of its own; its sweep a job of emulated Azure ML."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aml_bed import Emulator, inherited_env, running_emulator
from aml_stack import NODE, RUNS, SHORT, assert_whole, on_a_laptop, project_of_jobs
from prefect_server import PrefectServer
from product import Product, Script, free_port, marked
from thorough import SOAKED, soaked, thorough
from waiting import wait_until

from plato_core.manifest import read_manifest, verify

pytestmark = pytest.mark.timeout(900)
TRIALS, LONGER = 3, 12
THROTTLED_S = 130.0
PREFECT = Path(sys.executable).with_name("prefect")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("aml-home")
    (home := folder / "image-home").mkdir()
    (home / "ray_bootstrap_config.yaml").write_text("{}\n")
    with running_emulator(folder / "emulator", phase=0.3, image_home=home) as emulator:
        yield emulator


@pytest.fixture
def laptop(emulator: Emulator, tmp_path: Path, prefect_home: Path) -> Iterator[Product]:
    """The project's folder on somebody's laptop, with the workspace's `config.json` in it."""
    project = project_of_jobs(tmp_path)
    emulator.workspace_config(project)
    settings = {"stop_reward": 501, "hyperparameters": SHORT["hyperparameters"] | {"min_time_s_per_iteration": 1.0}}
    (config := tmp_path / "short.yaml").write_text(json.dumps(settings))
    environment = inherited_env() | emulator.env() | {"PREFECT_HOME": str(prefect_home)}
    with Product(project, environment, config) as product:
        yield product


def start(laptop: Product, experiment: str, nodes: int, iterations: int) -> Script:
    return laptop.start(
        "--compute", "aml", "--preset", "test-local", "--config", laptop.short_config, "--json", "--seed", "3",
        "--experiment-name", experiment, "--num-tune-samples", str(TRIALS), "--max-iterations", str(iterations),
        "--perturbation-interval", "2", "--job-variable", f"instance_count={nodes}",
        "--job-variable", "poll_interval_s=0.5", "--job-variable", f"ray_port={free_port()}",
        "--job-variable", f"ray_head_arguments={NODE}", "--job-variable", f"ray_worker_arguments={NODE}",
        program=laptop.folder / "flows" / "sweep_and_fetch.py",
    )  # fmt: skip


def resume(laptop: Product) -> Script:
    return laptop.start("--resume", "last", "--json", program=laptop.folder / "flows" / "sweep_and_fetch.py")


def sweep_that_trains(laptop: Product, emulator: Emulator, script: Script) -> str:
    """Waits until each of two trials has a checkpoint in the datastore; returns the sweep's id."""
    found = emulator.datastore("plato/sweeps")

    def name() -> str:
        return next((path.name for path in (laptop.folder / ".plato" / "sweeps").glob("*-*-*")), "none")

    def written() -> bool:
        assert script.process.poll() is None, script.said
        return len({path.parents[1] for path in found.glob(f"{name()}/tune/*/*/manifest.json")}) >= 2

    wait_until(written, "two trials have a checkpoint", 300)
    return name()


def result_of(script: Script) -> dict[str, Any]:
    assert script.wait(400) == 0, script.said
    return json.loads(script.stdout.splitlines()[-1])


def runs_of(laptop: Product, emulator: Emulator, experiment: str) -> dict[str, dict[str, Any]]:
    """The runs of an experiment by id."""
    return {run["id"]: run for run in on_a_laptop(emulator, laptop.folder, RUNS, experiment)}


def assert_one_sweep(runs: dict[str, dict[str, Any]], result: dict[str, Any], jobs: list[str], iterations: int) -> None:
    """One parent with its children, and a run of each job that says whose it is; every series is whole."""
    parent = result["parent_run_id"]
    children = [run for name, run in runs.items() if name not in (parent, *jobs)]
    assert (len(runs), len(children)) == (1 + len(jobs) + TRIALS, TRIALS)
    assert runs[parent]["status"] == "FINISHED"
    for job in jobs:
        assert runs[job]["tags"]["plato.resumes"] == parent
    for run in children:
        assert run["tags"]["mlflow.parentRunId"] == parent
        assert run["status"] == "FINISHED"
        assert_whole(run["series"], iterations)
    checkpoint = Path(result["checkpoint_path"])
    assert verify(checkpoint, read_manifest(checkpoint)) == []


def test_the_checkpoint_is_on_the_laptop_at_the_end(laptop: Product, emulator: Emulator) -> None:
    script = start(laptop, "from-home", nodes=2, iterations=4)
    result = result_of(script)
    assert Path(result["checkpoint_path"]).is_relative_to(laptop.folder / "model_checkpoints")
    job = f"ps-{result['sweep_id']}-000"
    assert (emulator.jobs(), result["slots"], result["trials"]) == ([job], 2, TRIALS)
    assert_one_sweep(runs_of(laptop, emulator, "from-home"), result, [job], 4)
    assert f"job {job} is Running" in script.stderr
    assert "finished at iteration 4" in script.stderr
    assert not emulator.refused()


@soaked
def test_a_deployment_of_the_process_pool_has_its_sweep_made_by_a_job(
    laptop: Product, emulator: Emulator, tmp_path: Path
) -> None:
    job_variables = {"instance_count": 2, "poll_interval_s": 0.5, "ray_port": free_port()}
    nodes = {"ray_head_arguments": NODE, "ray_worker_arguments": NODE}
    asked = SHORT | {"max_iterations": 4, "experiment_name": "deployed-at-home", "job_variables": job_variables | nodes}
    before = set(emulator.jobs())
    with PrefectServer(tmp_path / "prefect") as server:
        known = {name: value for name, value in server.environment.items() if name.startswith("PREFECT_")}
        known["PWD"] = str(laptop.folder)  # as a shell sets it; `prefect.yaml` reads it

        def prefect(*arguments: str) -> str:
            done = laptop.run("--no-prompt", *arguments, program=PREFECT, timeout_s=400, **known)
            assert done.process.returncode == 0, done.said
            return done.stdout

        prefect("work-pool", "create", "local", "--type", "process")
        prefect("deploy", "--name", "local-aml")
        worker = laptop.start("worker", "start", "--pool", "local", program=PREFECT, **known)
        said = prefect("deployment", "run", "sweep/local-aml", "--params", json.dumps(asked), "--watch")
        worker.process.terminate()
        worker.wait(30.0)
        assert "Completed" in said, worker.said
    [job] = set(emulator.jobs()) - before
    runs = runs_of(laptop, emulator, "deployed-at-home")
    [parent] = [run for name, run in runs.items() if name != job and "mlflow.parentRunId" not in run["tags"]]
    [checkpoint] = (laptop.folder / "model_checkpoints").glob("*/checkpoint_*")
    result = {"parent_run_id": parent["id"], "checkpoint_path": str(checkpoint)}
    assert_one_sweep(runs, result, [job], 4)


@soaked
def test_ctrl_c_cancels_the_job_and_the_sweep_goes_on_in_a_new_one(laptop: Product, emulator: Emulator) -> None:
    script = start(laptop, "interrupted", nodes=1, iterations=LONGER)
    sweep = sweep_that_trains(laptop, emulator, script)
    jobs = [f"ps-{sweep}-000", f"ps-{sweep}-001"]
    script.interrupt()
    assert script.wait() == 130, script.said
    assert f"plato sweep --resume {sweep}" in script.stderr
    wait_until(lambda: emulator.job(jobs[0])["status"] == "Canceled", "the job has ended")
    before = runs_of(laptop, emulator, "interrupted")
    ended = {run["status"] for name, run in before.items() if name not in jobs}
    assert "KILLED" in ended
    assert ended <= {"KILLED", "FINISHED"}

    result = result_of(resume(laptop))
    runs = runs_of(laptop, emulator, "interrupted")
    assert runs.keys() == before.keys() | {jobs[1]}
    assert_one_sweep(runs, result, jobs, LONGER)


@thorough
def test_a_killed_clients_job_is_followed_and_when_it_dies_the_sweep_goes_on_in_a_new_one(
    laptop: Product, emulator: Emulator
) -> None:
    """The job is taken from its node in between, without notice, and begins again on another."""
    script = start(laptop, "killed", nodes=1, iterations=LONGER)
    sweep = sweep_that_trains(laptop, emulator, script)
    jobs = [f"ps-{sweep}-000", f"ps-{sweep}-001"]
    for process in marked(script.mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    emulator.control("preempt", job=jobs[0])

    again = resume(laptop)
    wait_until(lambda: emulator.datastore(f"plato/sweeps/{sweep}/tune-2").is_dir(), "it trains again", 240)
    wait_until(lambda: f"job {jobs[0]} is there already" in again.stderr, "it says so")
    assert [name for name in emulator.jobs() if sweep in name] == jobs[:1]
    assert emulator.job(jobs[0])["attempt"] == 2
    emulator.control("kill_node", job=jobs[0], node=0)
    assert again.wait() == 1, again.said
    assert f"job {jobs[0]}: The job failed" in again.stderr
    assert f"go on with it: plato sweep --resume {sweep}" in again.stderr
    assert "RUNNING" not in {run["status"] for run in runs_of(laptop, emulator, "killed").values()}

    result = result_of(resume(laptop))
    assert result["sweep_id"] == sweep
    assert_one_sweep(runs_of(laptop, emulator, "killed"), result, jobs, LONGER)


@soaked
def test_an_mlflow_that_throttles_at_the_end_is_waited_for(laptop: Product, emulator: Emulator) -> None:
    """From before the last results on for over two minutes, and then where the winner is selected."""
    script = start(laptop, "throttled", nodes=1, iterations=LONGER)
    job = f"ps-{sweep_that_trains(laptop, emulator, script)}-000"
    retry_after = {"Retry-After": "1"}
    emulator.fault("eastus.api.azureml.ms/mlflow/", status=429, times=10**6, headers=retry_after)
    try:
        wait_until(lambda: "all is trained, tracking waits, up to 15 min: " in script.stderr, "the end waits", 300)
        time.sleep(THROTTLED_S)
        assert emulator.job(job)["status"] == "Running"
    finally:
        emulator.control("clear_faults")
    emulator.fault("/mlflow/runs/search$", status=503, times=20)
    result = result_of(script)
    assert emulator.job(job)["status"] == "Completed"
    for line in ("all is trained, tracking waits", "waiting for the tracking store, up to 15 min: ", "answers again"):
        assert script.stderr.count(line) == 1, script.stderr
    assert "tracking goes on" in script.stderr
    assert_one_sweep(runs_of(laptop, emulator, "throttled"), result, [job], LONGER)


def test_what_cannot_be_a_job_is_refused_in_one_line_before_anything_is_made(
    laptop: Product, emulator: Emulator
) -> None:
    before = emulator.jobs()
    for given, said in (
        (("--job-variable", "compute=no-such"), "workspace ws-emu has no compute 'no-such'; it has: "),
        (("--job-variable", "environment=plato:9"), "workspace ws-emu has no environment 'plato:9'; it has none"),
        (("--tracking-uri", "sqlite:///mlflow.db"), "is on this machine, and the sweep trains in an Azure ML job"),
        (("--job-variable", "instance_cuont=2"), "job_variables.instance_cuont: there is no such setting"),
        (("--ray-address", "auto"), "compute: an Azure ML job brings its own Ray"),
    ):
        script = laptop.run("--compute", "aml", "--max-iterations", "1", *given)
        assert script.process.returncode == 2, script.said
        assert script.stderr.count("\n") == 1
        assert said in script.stderr
    assert not (laptop.folder / ".plato").exists()
    assert emulator.jobs() == before


@pytest.mark.parametrize(
    ("variables", "workspace", "diagnosis", "remedy"),
    [
        ({"AZURE_CLIENT_SECRET": "wrong"}, "ws-emu", "AADSTS7000215", "sign in with `az login`, or set AZURE"),
        pytest.param(
            dict.fromkeys(("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")),
            "ws-emu", "nobody is signed in to Azure", "sign in with `az login`, or set AZURE_TENANT_ID",
            marks=SOAKED,
        ),
        pytest.param({}, "elsewhere", "Azure ML workspace elsewhere", "look at its config.json", marks=SOAKED),
    ],
)  # fmt: skip
def test_who_is_not_let_in_is_told_how_before_anything_is_made(
    laptop: Product, variables: dict[str, str | None], workspace: str, diagnosis: str, remedy: str
) -> None:
    config = laptop.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"workspace_name": workspace}))
    laptop.environment = {
        name: value for name, value in {**laptop.environment, **variables}.items() if value is not None
    }
    script = laptop.run("--compute", "aml", "--max-iterations", "1")
    assert script.process.returncode == 1, script.said
    assert script.stderr.count("\n") == 1
    assert diagnosis in script.stderr
    assert remedy in script.stderr
    assert not (laptop.folder / ".plato").exists()


@thorough
def test_a_prefect_server_that_was_named_and_does_not_answer_is_told_of(laptop: Product, emulator: Emulator) -> None:
    before = emulator.jobs()
    url = f"http://127.0.0.1:{free_port()}/api"
    script = laptop.run("--compute", "aml", "--max-iterations", "1", PREFECT_API_URL=url)
    assert script.process.returncode == 2, script.said
    assert script.stderr.count("\n") == 1
    assert f"PREFECT_API_URL: no Prefect server answers at {url}" in script.stderr
    assert "start it, or unset PREFECT_API_URL" in script.stderr
    assert not list(laptop.folder.glob(".plato/sweeps/*-*-*"))
    assert emulator.jobs() == before


@soaked
def test_a_job_that_no_quota_lets_run_ends_the_sweep_with_its_diagnosis(laptop: Product) -> None:
    script = laptop.run(
        "--compute", "aml", "--max-iterations", "1", "--job-variable", "compute=no-quota",
        "--job-variable", "poll_interval_s=0.5", timeout_s=200.0,
    )  # fmt: skip
    assert script.process.returncode == 1, script.said
    assert "Likely cause: quota or capacity. The cluster no-quota" in script.stderr
    assert "Ask for fewer nodes (instance_count)" in script.stderr
    assert "Traceback" not in script.said

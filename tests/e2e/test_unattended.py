"""Deployed runs that die, and go on when they are tried again; and one that does not die of losing its worker."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from mlflow.entities import Run
from stack import Stack, project_copy, running_stack
from thorough import SOAKED, soaked, thorough
from waiting import wait_until

from plato_core.stack.parts import WORKER
from plato_core.stack.processes import SUPERVISOR, marked
from plato_core.stack.settings import MLFLOW, PREFECT

ITERATIONS = 40
SHORT = f"""\
          preset: test-local
          num_tune_samples: 2
          max_iterations: {ITERATIONS}
          perturbation_interval: 4
          stop_reward: 10000
          hyperparameters:
            train_batch_size: 512
            minibatch_size: 128
            num_epochs: 2
            num_envs_per_env_runner: 8
            model_config: {{fcnet_hiddens: [16], fcnet_activation: tanh, vf_share_layers: false}}
"""
RUN_S = 240.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("unattended")
    project = project_copy(folder)
    text = (project / "prefect.yaml").read_text()
    assert "          preset: test-local\n" in text
    text = text.replace("          preset: test-local\n", SHORT).replace("active: true", "active: false")
    (project / "prefect.yaml").write_text(text)
    with running_stack(folder, project) as stack:
        yield stack


def start(stack: Stack, **parameters: object) -> str:
    deployment = stack.request("GET", "/deployments/name/sweep/local")["id"]
    parameters = {"stop_reward": 501} | parameters  # out of reach
    return stack.request("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]


def state(stack: Stack, run: str) -> str:
    return stack.request("GET", f"/flow_runs/{run}")["state"]["name"]


def tasks_of(stack: Stack, run: str) -> list[tuple[str, str]]:
    """Names and states of the flow run's tasks, in all attempts."""
    tasks = stack.request("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return sorted((task["name"].partition(" ")[0], task["state_name"]) for task in tasks)


def sweep_folder(stack: Stack, run: str) -> Path:
    [tag] = [tag for tag in stack.request("GET", f"/flow_runs/{run}")["tags"] if tag.startswith("sweep:")]
    return stack.project / ".plato" / "sweeps" / tag.removeprefix("sweep:")


def wait_for_training(stack: Stack, run: str) -> Path:
    """Waits until each trial has a checkpoint; returns the sweep's folder."""
    wait_until(lambda: state(stack, run) == "Running", "the run begins")
    wait_until(lambda: "sweep:" in str(stack.request("GET", f"/flow_runs/{run}")["tags"]), "its sweep begins")
    folder = sweep_folder(stack, run)

    def written() -> bool:
        assert state(stack, run) == "Running", (folder / "sweep.log").read_text()[-2000:]
        return len({path.parents[1] for path in folder.glob("tune/*/checkpoint_*/manifest.json")}) == 2

    wait_until(written, "each trial has a checkpoint", RUN_S)
    return folder


def engine(stack: Stack) -> psutil.Process:
    """The process of the one flow run that trains: the parent of its sweep's."""
    [sweep] = [one for one in marked(WORKER, stack.folder) if one.cmdline()[-2:] == ["-m", "plato_core.sweep"]]
    parent = sweep.parent()
    assert parent is not None
    return parent


def kill(stack: Stack, run: str, process: psutil.Process) -> None:
    """Kills a run's engine, and waits for its worker's last word: it says Crashed twice, some seconds apart.

    In between the second would undo a retry.
    """
    log, last_word = stack.settings.logs / f"{WORKER}.log", "prefect.flow_runs.worker - Check whether the flow run"
    before = log.read_text().count(last_word)
    process.kill()
    wait_until(lambda: log.read_text().count(last_word) > before, "its worker's last word")
    assert state(stack, run) == "Crashed"


def retry(stack: Stack, run: str) -> None:
    done = stack.prefect("flow-run", "retry", run)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for_end(stack: Stack, run: str) -> None:
    ends = ("Completed", "Failed", "Crashed", "Cancelled")
    wait_until(lambda: state(stack, run) not in ends, "it is tried again")
    wait_until(lambda: state(stack, run) in ends, "the run ends", RUN_S)
    found = stack.request("GET", f"/flow_runs/{run}")["state"]
    assert found["name"] == "Completed", found["message"]


def tracked(stack: Stack, folder: Path) -> tuple[Run, list[Run]]:
    """The one parent run of a sweep, and its trials."""
    client = mlflow.MlflowClient(stack.mlflow_url)
    experiments: list[str] = [experiment.experiment_id for experiment in client.search_experiments()]
    [parent] = client.search_runs(
        experiments, f"tags.`plato.sweep_id` = '{folder.name}' and tags.`plato.kind` = 'sweep'"
    )
    return parent, list(client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"))


def assert_whole(stack: Stack, folder: Path) -> None:
    """One parent run, two trials with every step once, and the winner's checkpoint."""
    client = mlflow.MlflowClient(stack.mlflow_url)
    parent, trials = tracked(stack, folder)
    assert [run.info.status for run in (parent, *trials)] == ["FINISHED"] * 3
    for trial in trials:
        steps = [point.step for point in client.get_metric_history(trial.info.run_id, "training_iteration")]
        assert steps == list(range(1, max(steps) + 1))
    top = parent.data.tags["plato.top_run_id"]
    assert (stack.project / "model_checkpoints" / top / parent.data.tags["plato.checkpoint"]).is_dir()


def iterations(folder: Path) -> int:
    """How many results the trials have had in all."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob("tune/*/result.json"))


def parent_status(stack: Stack, folder: Path) -> str:
    return tracked(stack, folder)[0].info.status


def logged(stack: Stack, run: str) -> list[str]:
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    return [entry["message"] for entry in stack.request("POST", "/logs/filter", query)]


def heartbeats(stack: Stack, run: str) -> list[dict[str, Any]]:
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    return stack.request("POST", "/events/filter", {"filter": wanted})["events"]


@thorough
def test_a_retry_goes_on_with_the_sweep_that_the_run_had_begun(stack: Stack) -> None:
    run = start(stack)
    folder = wait_for_training(stack, run)
    flows = [one for beat in heartbeats(stack, run) for one in beat["related"]]
    assert "sweep" in [one["prefect.resource.name"] for one in flows if one["prefect.resource.role"] == "flow"]
    kill(stack, run, engine(stack))
    retry(stack, run)  # the sweep itself may still be ending in order
    wait_until(lambda: list(folder.glob("tune-2/*")), "it trains again", RUN_S)
    assert parent_status(stack, folder) == "RUNNING"
    wait_for_end(stack, run)
    assert sweep_folder(stack, run) == folder
    assert_whole(stack, folder)
    assert len(list(folder.parent.glob("*/config.yaml"))) == 1


@soaked
def test_what_was_done_is_not_done_again(stack: Stack) -> None:
    results = stack.folder / "prefect" / "storage"
    run = start(stack, max_iterations=8)
    folder = wait_for_training(stack, run)
    process = engine(stack)
    wait_until(lambda: list(results.glob(f"plato-sweep-{run}-*")), "the sweep's result is kept", RUN_S)
    kill(stack, run, process)
    log = folder / "sweep.log"
    before = (log.read_bytes(), log.stat().st_mtime_ns)
    retry(stack, run)
    wait_for_end(stack, run)
    assert (log.read_bytes(), log.stat().st_mtime_ns) == before
    assert not list(folder.glob("tune-2"))
    assert_whole(stack, folder)
    wait_until(lambda: ("train", "Cached") in tasks_of(stack, run), "the tasks' states are there")
    leaderboard = next(
        artifact
        for artifact in stack.request("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        if artifact["key"].endswith("leaderboard")
    )
    assert [row["iteration"] for row in json.loads(leaderboard["data"])] == ["8", "8"]
    assert "| 8 |" in (folder / "summary.md").read_text()  # what the first attempt saw is not lost


@soaked
def test_a_run_without_its_worker_lives_on_says_so_and_can_be_cancelled(stack: Stack) -> None:
    run = start(stack, max_iterations=100_000)
    folder = wait_for_training(stack, run)
    worker = stack.state.parts[WORKER].pid
    os.kill(worker, signal.SIGKILL)
    body = {"state": {"type": "CRASHED", "message": "No sign of life."}, "force": True}
    stack.request("POST", f"/flow_runs/{run}/set_state", body)
    wait_until(lambda: state(stack, run) == "Running", "the run says that it lives")
    wait_until(lambda: stack.state.parts[WORKER].pid != worker, "the worker is started again")
    before = iterations(folder)
    wait_until(lambda: iterations(folder) > before + 10, "it trains on")
    assert stack.prefect("flow-run", "cancel", run).returncode == 0
    wait_until(lambda: state(stack, run) == "Cancelled", "it ends")
    wait_until(lambda: not [line for line in stack.processes() if "plato_core.sweep" in line], "nothing is left")
    parent, trials = tracked(stack, folder)
    assert [one.info.status for one in (parent, *trials)] == ["KILLED"] * 3


@pytest.mark.parametrize("how", [pytest.param("the command", marks=thorough), pytest.param("the UI", marks=SOAKED)])
def test_a_cancelled_run_ends_in_order_and_goes_on(stack: Stack, how: str) -> None:
    run = start(stack)
    folder = wait_for_training(stack, run)
    assert any("raylet" in line for line in stack.processes())
    before = time.monotonic()
    if how == "the command":
        assert stack.prefect("flow-run", "cancel", run).returncode == 0
    else:
        stack.request("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    wait_until(lambda: state(stack, run) == "Cancelled", "it is cancelled")
    assert not [line for line in stack.processes() if "ray" in line or "plato_core.sweep" in line]
    print(f"cancelled by {how} after {time.monotonic() - before:.1f} s")
    way_on = f"retry this run, or: plato sweep --resume {folder.name}"
    wait_until(lambda: way_on in str(logged(stack, run)), "its log says how to go on")
    parent, trials = tracked(stack, folder)
    assert [one.info.status for one in (parent, *trials)] == ["KILLED"] * 3
    for trial in trials:
        last = int(trial.data.metrics["training_iteration"])
        client = mlflow.MlflowClient(stack.mlflow_url)
        assert f"checkpoint_{last:06d}" in {file.path for file in client.list_artifacts(trial.info.run_id)}
    if how == "the command":
        workers = "Flow run was cancelled successfully."  # its last word; it would undo a retry before it
        wait_until(lambda: stack.request("GET", f"/flow_runs/{run}")["state"]["message"] == workers, "it is over")
        retry(stack, run)
    else:
        run = start(stack, resume=folder.name)
    wait_for_end(stack, run)
    assert sweep_folder(stack, run) == folder
    assert_whole(stack, folder)


@soaked
def test_after_a_loss_of_power_a_retry_goes_on(stack: Stack) -> None:
    run = start(stack)
    folder = wait_for_training(stack, run)
    everything = [one for part in (SUPERVISOR, WORKER, PREFECT, MLFLOW) for one in marked(part, stack.folder)]
    for process in everything:
        process.kill()
    psutil.wait_procs(everything, 10)
    stack.up()
    wait_until(lambda: state(stack, run) == "Crashed", "it is marked")
    retry(stack, run)
    wait_for_end(stack, run)
    assert sweep_folder(stack, run) == folder
    assert_whole(stack, folder)

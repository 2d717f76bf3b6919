"""The whole way on an emulated Azure ML: `prefect deployment run sweep/aml`, the cluster, the checkpoint at home."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aml_stack import LEFT_ABOUT, PASSWORD, SHORT, AmlStack, assert_whole, running_aml_stack
from thorough import soaked
from waiting import wait_until

from plato_core.manifest import read_manifest, verify

pytestmark = pytest.mark.timeout(900)
EXPERIMENT = SHORT["experiment_name"]
TRIALS, ITERATIONS = SHORT["num_tune_samples"], SHORT["max_iterations"]
LONGER = 12
# In processes of their own: the SDKs keep what they know of a workspace.
FETCH = """
from get_mlflow_artifacts import get_top_run, list_experiments
experiments = list_experiments()
experiment = experiments[-1].name          # the most recent one
top = get_top_run(experiment, "model_checkpoints", rank_metric="metrics.episode_reward_max")
import json, os
print(json.dumps({"experiment": experiment, "path": os.fspath(top), "run": top.run_id, "value": top.rank_value}))
"""
PLAY = """
import json, sys, gymnasium, torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
policy = RLModule.from_checkpoint(sys.argv[1] + "/learner_group/learner/rl_module/default_policy")
returns = []
for seed in range(5):
    env, over, total = gymnasium.make("CartPole-v1"), False, 0.0
    observation, _ = env.reset(seed=seed)
    while not over:
        with torch.no_grad():
            out = policy.forward_inference({Columns.OBS: torch.from_numpy(observation[None])})
        observation, reward, terminated, truncated, _ = env.step(int(out[Columns.ACTION_DIST_INPUTS].argmax()))
        total, over = total + float(reward), terminated or truncated
    returns.append(total)
print(json.dumps({"returns": returns}))
"""


@dataclass(frozen=True)
class Sweep:
    """A run of the deployment, at its end.

    Attributes:
        run_id: The flow run's id.
        said: What `prefect deployment run --watch` printed.
    """

    run_id: str
    said: str

    @property
    def job(self) -> str:
        return f"pf-{self.run_id}-000"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AmlStack]:
    with running_aml_stack(tmp_path_factory.mktemp("aml-sweep")) as stack:
        yield stack


@pytest.fixture(scope="module")
def sweep(stack: AmlStack) -> Sweep:
    said = stack.bed.prefect("deployment", "run", "sweep/aml", "--watch", timeout_s=600.0)
    found = re.search(r"UUID: ([0-9a-f-]{36})", said)
    assert found is not None, said
    return Sweep(found[1], said)


@pytest.fixture(scope="module")
def runs(stack: AmlStack, sweep: Sweep) -> list[dict[str, Any]]:
    return stack.runs_of(EXPERIMENT, "somewhere-else")


def test_the_command_tells_that_the_run_is_completed(stack: AmlStack, sweep: Sweep) -> None:
    assert stack.bed.state_of(sweep.run_id) == "Completed", stack.messages(sweep.run_id)
    assert "Completed" in sweep.said
    # Its disk is gone by now.
    assert stack.bed.run(sweep.run_id)["state"]["message"].endswith(f" of job {sweep.job}")


def test_the_run_is_one_job_that_completed(stack: AmlStack, sweep: Sweep) -> None:
    assert stack.jobs_of(sweep.run_id) == [sweep.job]
    assert stack.bed.job_ended(sweep.job) == "Completed"
    assert stack.emulator.job(sweep.job)["exp"] == EXPERIMENT


def test_trials_trained_on_both_nodes(stack: AmlStack, sweep: Sweep) -> None:
    [folder] = stack.sweeps()
    trained = {}
    for path in folder.glob("tune/*/result.json"):
        trained[path.parent.name] = json.loads(path.read_text().splitlines()[-1])["node_ip"]
    assert len(trained) == TRIALS
    assert sorted(set(trained.values())) == sorted(stack.emulator.job(sweep.job)["addresses"])


def test_the_trials_are_children_of_the_jobs_own_run(sweep: Sweep, runs: list[dict[str, Any]]) -> None:
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run["tags"]]
    assert (parent["id"], parent["status"]) == (sweep.job, "FINISHED")
    assert {run["tags"].get("mlflow.parentRunId") for run in runs if run is not parent} == {sweep.job}
    assert len(runs) == TRIALS + 1


def test_every_series_is_whole(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        if "mlflow.parentRunId" in run["tags"]:
            assert run["status"] == "FINISHED"
            assert_whole(run["series"], ITERATIONS)


def test_the_laptop_fetches_a_checkpoint_that_verifies_and_plays(stack: AmlStack, runs: list[dict[str, Any]]) -> None:
    laptop = stack.laptop("laptop")
    top = stack.on_the_laptop(laptop, FETCH)
    assert top["experiment"] == EXPERIMENT
    latest = {run["id"]: run["series"]["episode_reward_max"][-1][1] for run in runs if run["series"]}
    assert top["value"] == latest[top["run"]] == max(latest.values())
    path = Path(top["path"])
    assert path.is_relative_to(laptop / "model_checkpoints")
    manifest = read_manifest(path)
    assert verify(path, manifest) == []
    assert manifest.sweep_id == stack.sweeps()[0].name
    assert all(value >= 8 for value in stack.on_the_laptop(laptop, PLAY, str(path))["returns"])


def test_the_flow_runs_log_tells_each_thing_once(stack: AmlStack, sweep: Sweep) -> None:
    said = stack.messages(sweep.run_id)
    told = [line for line in said if line.startswith("Job ") or "exploits" in line or line.startswith("trial")]
    assert len(told) == len(set(told)), told
    assert any(line.startswith(f"Job {sweep.job} is Running") for line in said)


@dataclass(frozen=True)
class Begun:
    """A run of the deployment whose sweep trains.

    Attributes:
        experiment: Its experiment, of its own.
        run_id: The flow run's id.
        sweep: The sweep's folder.
    """

    experiment: str
    run_id: str
    sweep: Path

    def job(self, attempt: int) -> str:
        return f"pf-{self.run_id}-{attempt:03d}"


def begun(stack: AmlStack, experiment: str, *more: str) -> Begun:
    """Starts a sweep whose iterations take a second, and waits until two of its trials have a checkpoint."""
    slow = json.dumps(SHORT["hyperparameters"] | {"min_time_s_per_iteration": 1})
    before = set(stack.sweeps())
    said = stack.bed.prefect(
        "deployment", "run", "sweep/aml", "-p", f"experiment_name={experiment}", "-p", f"hyperparameters={slow}",
        "-p", f"max_iterations={LONGER}", *more,
    )  # fmt: skip
    found = re.search(r"UUID: ([0-9a-f-]{36})", said)
    assert found is not None, said
    run_id = found[1]

    def trains() -> bool:
        assert stack.bed.run(run_id)["state_type"] in ("SCHEDULED", "PENDING", "RUNNING"), stack.messages(run_id)
        manifests = [path for sweep in set(stack.sweeps()) - before for path in sweep.glob("tune/*/*/manifest.json")]
        return len({path.parents[1] for path in manifests}) >= 2

    wait_until(trains, "two trials have a checkpoint", 240.0)
    [sweep] = set(stack.sweeps()) - before
    return Begun(experiment, run_id, sweep)


def assert_whole_sweep(stack: AmlStack, swept: Begun, laptop: str) -> dict[str, dict[str, Any]]:
    """One parent, the first job's own run, with one child for each trial, that has each of its steps once.

    Returns:
        The runs of the experiment by their ids, also of later jobs.
    """
    runs = {run["id"]: run for run in stack.runs_of(swept.experiment, laptop)}
    children = [run for run in runs.values() if "mlflow.parentRunId" in run["tags"]]
    assert len(children) == TRIALS
    for run in children:
        assert run["tags"]["mlflow.parentRunId"] == swept.job(0)
        assert run["status"] == "FINISHED"
        assert_whole(run["series"], LONGER)
    return runs


@soaked
def test_a_sweep_that_loses_a_node_and_then_all_of_them_ends_whole_in_the_same_job(stack: AmlStack) -> None:
    bed, swept = stack.bed, begun(stack, "taken-away")
    job = swept.job(0)
    stack.emulator.control("kill_node", job=job, node=1)
    wait_until(lambda: _told(stack, swept, "is lost: 1 of 2 left"), "the loss is told")
    before = {run["id"] for run in stack.runs_of(swept.experiment, "one-node-is-lost")}
    stack.emulator.control("preempt", job=job)
    wait_until(lambda: stack.emulator.job(job)["attempt"] == 2, "it begins again")
    assert bed.job_ended(job) == "Completed", stack.emulator.log(job)
    assert bed.ended(swept.run_id)["state_name"] == "Completed"
    assert stack.jobs_of(swept.run_id) == [job]
    assert _told(stack, swept, "going on: trial 0")
    runs = assert_whole_sweep(stack, swept, "all-came-back")
    assert runs.keys() == before
    assert runs[job]["status"] == "FINISHED"


def _told(stack: AmlStack, swept: Begun, words: str) -> bool:
    state = stack.bed.run(swept.run_id)["state_type"]
    assert state in ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED"), stack.messages(swept.run_id)
    return any(words in line for line in stack.messages(swept.run_id))


@soaked
def test_a_cancelled_sweep_goes_on_in_a_new_job_under_the_same_parent(stack: AmlStack) -> None:
    bed, swept = stack.bed, begun(stack, "cancelled", "-jv", "launcher=mpi")
    run_id, sweep, experiment = swept.run_id, swept.sweep, swept.experiment
    first, second = swept.job(0), swept.job(1)
    bed.prefect("flow-run", "cancel", run_id)
    assert bed.ended(run_id)["state_name"] == "Cancelled"
    assert bed.job_ended(first) == "Failed"  # by its exit code
    way_on = f"to go on with it, retry this run, or: prefect deployment run sweep/aml -p resume={sweep.name}"
    assert f"stopped; {way_on}" in stack.messages(run_id)
    by_id = {run["id"]: run for run in stack.runs_of(experiment, "after-the-cancel")}
    assert len(by_id) == TRIALS + 1
    ended = {run["status"] for name, run in by_id.items() if name != first}
    assert "KILLED" in ended
    assert ended <= {"KILLED", "FINISHED"}  # a trial may have come to its own end before the cancel

    bed.prefect("flow-run", "retry", run_id)
    wait_until(lambda: second in stack.jobs_of(run_id), "the next attempt's job")
    assert bed.job_ended(second) == "Completed", stack.emulator.log(second)
    assert bed.ended(run_id)["state_name"] == "Completed"
    after = assert_whole_sweep(stack, swept, "after-the-retry")
    other = after.pop(second)
    assert after.keys() == by_id.keys()
    assert other["tags"]["plato.resumes"] == first
    assert [name for name in other["tags"] if name.startswith("plato.")] == ["plato.resumes"]
    assert other["params"] == {}


def test_no_secret_is_anywhere_and_nobody_else_was_called(stack: AmlStack, sweep: Sweep) -> None:
    """The last test of this file: it searches what all before it have left."""
    login = f"admin:{PASSWORD}"
    hidden = {PASSWORD, LEFT_ABOUT, base64.b64encode(login.encode()).decode(), *stack.emulator.secrets()}
    assert len(hidden) > 5
    searched = {path for path in stack.folder.rglob("*") if path.is_file() and not path.is_symlink()}
    searched.remove(stack.folder / "desk" / "project" / ".env")
    names = {path.name for path in searched}
    assert {"prefect.db", "worker.log", "std_log.txt", "requests.jsonl", "sweep.log", "result.json"} <= names
    for path in searched:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # such as a lease that the server gives up just now
            continue
        assert not [value for value in hidden if value.encode() in content], path
    assert stack.emulator.refused() == []

"""A sweep is executed alike as a process of this machine and as a job of Azure ML: what it tells, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aml_bed import running_emulator
from aml_jobs import laptop_env
from stack import ROOT
from thorough import thorough

pytestmark = pytest.mark.timeout(600)
TRIALS, ITERATIONS = 2, 6
SETTINGS: dict[str, Any] = {
    "preset": "test-local",
    "num_tune_samples": TRIALS,
    "max_iterations": ITERATIONS,
    "stop_reward": 501,  # out of reach
    "perturbation_interval": 2,
    "max_failures": 0,
    "seed": 3,
    "hyperparameters": {
        "train_batch_size": 256,
        "minibatch_size": 128,
        "num_epochs": 1,
        "model_config": {"fcnet_hiddens": [16], "fcnet_activation": "tanh", "vf_share_layers": False},
    },
}
Told = list[dict[str, Any]]
Execute = Callable[..., tuple[Told, dict[str, Any]]]


@pytest.fixture(scope="module", params=["local", pytest.param("aml", marks=thorough)])
def execute(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Execute]:
    """Executes a sweep; returns what it told, and how it ended with its runs."""
    folder = tmp_path_factory.mktemp(f"executed-{request.param}")
    own: dict[str, Any] = {"storage_path": str(folder / "sweeps"), "local_path": str(folder / "checkpoints")}

    def run(environment: dict[str, str], *, stop_after: int | str = "all", **settings: Any) -> tuple[Told, Any]:
        usual = {} if "resume" in settings else SETTINGS
        (file := folder / "settings.json").write_text(json.dumps(usual | own | settings))
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("execution_driver.py")), str(file), str(stop_after)],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=400.0, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        *told, last = [json.loads(line) for line in done.stdout.splitlines()]
        return told, last

    if request.param == "local":
        own["tracking_uri"] = f"sqlite:///{folder / 'mlflow.db'}"
        path = f"{ROOT}:{ROOT / 'tests' / 'integration'}"
        yield lambda **more: run({**os.environ, "PYTHONPATH": path}, **more)
        return
    with running_emulator(folder / "emulator", phase=0.2) as emulator:
        emulator.workspace_config(folder)
        environment = laptop_env(emulator)
        own["compute"] = "aml"
        own["job_variables"] = {
            "code": str(ROOT),
            "poll_interval_s": 0.5,
            "env": {"PYTHONPATH": environment["PYTHONPATH"]},
        }
        yield lambda **more: run(environment, **more)


def kinds(told: Told) -> list[str]:
    return [event["kind"] for event in told]


def steps_of(end: dict[str, Any]) -> list[list[int]]:
    return sorted(sorted(run["steps"]) for run in end["runs"])


def test_a_sweep_tells_of_each_trial_from_its_start_to_its_end(execute: Execute) -> None:
    told, end = execute(experiment_name="whole")
    assert end["outcome"] == "finished", end
    started = [event["index"] for event in told if event["kind"] == "trial_started"]
    assert sorted(started) == list(range(TRIALS))
    for trial in {event["trial"] for event in told if event["kind"] == "trial_started"}:
        mine = [event for event in told if event.get("trial") == trial]
        assert [event["iteration"] for event in mine if event["kind"] == "result"] == list(range(1, ITERATIONS + 1))
        assert kinds(mine)[0] == "trial_started"
        [ended] = [event for event in mine if event["kind"] == "trial_ended"]
        assert ended["status"] == "FINISHED"
    assert kinds(told)[-1] == "sweep_ended"
    assert told[-1]["outcome"] == "finished"
    assert told[-1]["training_slot_s"] > 0
    assert {run["status"] for run in end["runs"]} == {"FINISHED"}
    assert steps_of(end) == [list(range(1, ITERATIONS + 1))] * TRIALS


def test_a_sweep_of_which_every_trial_fails_says_what_the_first_failed_with(execute: Execute) -> None:
    broken = {"folder": "/nowhere", "broken": True}
    told, end = execute(experiment_name="failing", env_name="odd_envs:Fragile-v0", env_config=broken)
    assert end["outcome"] == "SweepError", end
    assert "broken sensor" in end["error"]
    assert "Traceback" not in end["error"]
    assert {run["status"] for run in end["runs"]} == {"FAILED"}
    assert "sweep_ended" not in kinds(told)


def test_a_sweep_that_is_stopped_ends_its_runs_and_goes_on_with_the_same(execute: Execute) -> None:
    slow = SETTINGS["hyperparameters"] | {"min_time_s_per_iteration": 1.0}
    told, end = execute(experiment_name="stopped", hyperparameters=slow, max_iterations=8, stop_after=4)
    assert end["outcome"] == "stopped", end
    assert len(end["runs"]) == TRIALS
    assert {run["status"] for run in end["runs"]} == {"KILLED"}
    assert told[-1] == told[-1] | {"kind": "sweep_ended", "outcome": "stopped"}

    told, end = execute(resume="last")
    assert end["outcome"] == "finished", end
    assert "past" in kinds(told)
    assert {run["status"] for run in end["runs"]} == {"FINISHED"}
    assert steps_of(end) == [list(range(1, 9))] * TRIALS

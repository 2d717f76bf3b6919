"""Which trials of an interrupted sweep go on, and what becomes of those that had trained to their end."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from plato_core.config import SweepConfig
from plato_core.manifest import TRIAL_STATE_NAME, write_manifest
from plato_core.sweep import folder, population, revival
from plato_core.sweep.packing import Node, pack
from plato_core.sweep.revival import TrialEnd
from plato_core.sweep.spent import SPENT_NAME, SpentTime, read_spent_s
from plato_core.sweep.stopping import STATE
from plato_core.tracking.callback import EndedBefore, SweepTrackingCallback
from plato_core.tracking.parent import ParentRun, open_parent
from plato_core.tracking.spool import Target

SWEEP = "20260801-020000-abcdef"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / SWEEP).mkdir()
    return tmp_path / SWEEP


def config(**settings: Any) -> SweepConfig:
    return SweepConfig.from_flow_parameters(
        {"scheduler": "median", "num_tune_samples": 2, "max_iterations": 10, **settings}
    )


def trained(sweep: Path, index: int, iteration: int, attempt: str = "tune", **result: Any) -> Path:
    """The folder of a trial whose last result has been logged and checkpointed."""
    trial = revival.trial_id(SWEEP, index)
    own = sweep / attempt / f"PPO_CartPole-v1_{trial}"
    checkpoint = own / f"checkpoint_{iteration:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / TRIAL_STATE_NAME).write_text(json.dumps({"trial_id": trial, "own": {"iteration": iteration}}))
    write_manifest(
        checkpoint, sweep_id=SWEEP, trial_id=trial, trial_name="a trial", iteration=iteration,
        metric="episode_reward_mean", score=1.0, hyperparameters={"lr": 0.1}, versions={},
    )  # fmt: skip
    lines = [{"training_iteration": i, "episode_reward_mean": 1.0} for i in range(1, iteration)]
    lines.append({"training_iteration": iteration, "episode_reward_mean": 1.0, **result})
    (own / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return own


def test_a_trial_killed_before_its_end_was_written_down_is_not_trained_beyond_it(sweep: Path) -> None:
    done = trained(sweep, 0, 10)
    trained(sweep, 1, 9)
    assert population.unfinished(config(), sweep) == [1]
    assert revival.end_of([done]) == TrialEnd(status="FINISHED", iteration=10, why="iterations")
    assert population.unfinished(config(max_iterations=12), sweep) == [0, 1]


def test_the_first_trial_at_the_target_ends_a_sweep_that_was_killed_with_it(sweep: Path) -> None:
    trained(sweep, 0, 5, episode_reward_mean=475.0)
    trained(sweep, 1, 5)
    assert population.unfinished(config(stop_reward=475, stop_when="first"), sweep) == []
    assert population.unfinished(config(stop_reward=475, stop_when="all"), sweep) == [1]


def test_a_result_without_a_checkpoint_of_its_own_is_no_end(sweep: Path) -> None:
    own = trained(sweep, 0, 9)
    with (own / "result.json").open("a") as file:
        file.write(json.dumps({"training_iteration": 10}) + "\n")
    assert population.unfinished(config(), sweep) == [0, 1]


def test_a_trial_that_never_had_its_turn_waits_for_a_larger_time_budget(sweep: Path) -> None:
    own = trained(sweep, 0, 5)
    revival.note_end(own, TrialEnd(status="FINISHED", iteration=5, why="time"))
    (sweep / SPENT_NAME).write_text("60.3")
    folder.record_end(sweep, "finished")
    assert population.unfinished(config(time_budget_s=60), sweep) == []
    assert population.unfinished(config(time_budget_s=90), sweep) == [0, 1]


def test_the_time_that_a_sweep_has_trained_is_known_after_a_kill(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_spent_s(sweep) == 0.0
    monkeypatch.setattr(STATE, "spent_s", 40.0)
    monkeypatch.setattr(STATE, "began", time.monotonic() - 2.0)
    SpentTime(sweep).on_experiment_end([])
    assert 42.0 <= read_spent_s(sweep) < 60.0
    (sweep / SPENT_NAME).write_bytes(b"\0" * 6)  # damaged by a loss of power
    assert read_spent_s(sweep) == 0.0


def test_what_is_said_of_trials_that_had_ended(sweep: Path) -> None:
    done, failed = trained(sweep, 0, 10), trained(sweep, 1, 4)
    revival.note_end(done, TrialEnd(status="FINISHED", iteration=10, why="iterations"))
    revival.note_end(failed, TrialEnd(status="FAILED", iteration=4, why="error", error="it fell over"))
    os.utime(done / revival.TRIAL_END_NAME, (1_000_000, 1_000_000))
    both = population.ended_before(config(), sweep, [])
    first, second = (both[revival.trial_id(SWEEP, index)] for index in (0, 1))
    assert first == EndedBefore("FINISHED", 1_000_000.0, done, done / "checkpoint_000010")
    assert (second.status, second.folder) == ("FAILED", failed)
    packing = pack(2, [Node(cpus=2, gpus=0, memory_bytes=2**34)], num_env_runners=0)
    going_on = population.trial_configs(config(seed=1), SWEEP, packing)[1:]
    assert list(population.ended_before(config(), sweep, going_on)) == [revival.trial_id(SWEEP, 0)]


def tracking(sweep: Path, uri: str, parent: ParentRun) -> SweepTrackingCallback:
    target = Target(
        tracking_uri=uri, experiment_id=parent.experiment_id, parent_run_id=parent.run_id, sweep_id=SWEEP,
        keep_checkpoints=1, mode="max",
    )  # fmt: skip
    return SweepTrackingCallback(target=target, spool_dir=sweep / "tracking", tuned=("lr",), params=lambda trial: {})


def test_a_run_whose_trial_had_ended_when_the_sweep_was_killed_ends_with_its_files(sweep: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    parent = open_parent(uri, "pbt", "sweep", {}, {})
    own = trained(sweep, 0, 3)
    before = tracking(sweep, uri, parent)
    trial = Trial("trainable", trial_id=own.name.partition("CartPole-v1_")[2],
                  storage=StorageContext(str(sweep), "tune", trial_dir_name=own.name), stub=True)  # fmt: skip
    before.log_trial_start(trial)
    for step in (1, 2, 3):
        before.log_trial_result(step, trial, {"training_iteration": step})
    assert before.drain(30).complete
    assert _only_child(uri, parent).info.status == "RUNNING"  # killed before it was told of the end

    after = tracking(sweep, uri, parent)
    after.open()
    after.end_before({trial.trial_id: EndedBefore("FINISHED", 1_000_000.0, own, own / "checkpoint_000003")})
    assert after.drain(30).complete
    run = _only_child(uri, parent)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1_000_000_000)
    artifacts = {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)}
    assert artifacts >= {"checkpoint_000003", "result.json"}


def _only_child(uri: str, parent: ParentRun) -> Run:
    [run] = MlflowClient(uri).search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    return run

"""The callback in real Tune experiments: Population Based Training, failures, a stop, a restore."""

import json
import pickle
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray import tune
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.schedulers import PopulationBasedTraining

from plato_core.manifest import write_manifest
from plato_core.tracking.callback import SweepTrackingCallback
from plato_core.tracking.parent import ParentRun, leave_to_flush, open_parent, reopen_parent
from plato_core.tracking.spool import Target, flush_command
from plato_core.training.metrics import CONTRACT_METRICS, LEARNER_METRICS


class Counting(tune.Trainable):
    """Reports the flat metrics of the contract, at its trial's own count, and checkpoints with a manifest."""

    def setup(self, config: dict[str, Any]) -> None:
        self.weight = 0.0
        self._adopt(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._adopt(new_config)
        return True

    def _adopt(self, config: dict[str, Any]) -> None:
        self.spec, self.lr = config["spec"], config["hyperparameters"]["lr"]
        self.count_file = Path(self.spec["folder"], f"{self.trial_id}.count")
        self.own = int(self.count_file.read_text()) if self.count_file.exists() else 0

    def step(self) -> dict[str, Any]:
        self.own += 1
        self.count_file.write_text(str(self.own))
        # Side by side: a trial that is done before the others have got anywhere is never compared with them.
        deadline = time.monotonic() + (60 if self.own == 1 else 2)
        while self._behind() and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.own == self.spec.get("fails_at") and not Path(self.spec["folder"], "mended").exists():
            raise ValueError("the environment fell over")
        self.weight += self.lr
        result: dict[str, Any] = dict.fromkeys(CONTRACT_METRICS, 0) | dict.fromkeys(LEARNER_METRICS, 0.5)
        result |= {
            "episode_reward_mean": self.weight if self.own > 1 else float("nan"),
            "training_iteration": self.own,
            "done": False,
            "hp/lr": self.lr,
            "unheard_of": 1.0,
        }
        return result

    def _behind(self) -> bool:
        counts = [path.read_text() for path in Path(self.spec["folder"]).glob("*.count")]
        return len(counts) < 3 or any(int(count or 0) < self.own - 1 for count in counts)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "weight.json").write_text(json.dumps(self.weight))
        write_manifest(
            Path(checkpoint_dir),
            sweep_id=self.spec["sweep_id"],
            trial_id=str(self.trial_id),
            trial_name=str(self.trial_name),
            iteration=self.own,
            metric="episode_reward_mean",
            score=self.weight,
            hyperparameters={"lr": self.lr},
            versions={},
        )

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        self.weight = json.loads(Path(str(checkpoint), "weight.json").read_text())


def initial_params(config: dict[str, Any]) -> dict[str, Any]:
    return {"env": "Counting", **config["hyperparameters"]}


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # workers import the trainable from this file
    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    yield
    ray.shutdown()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def parent(uri: str) -> ParentRun:
    return open_parent(uri, "pbt", "sweep", {}, {})


def _target(uri: str, parent: ParentRun) -> Target:
    return Target(
        tracking_uri=uri,
        experiment_id=parent.experiment_id,
        parent_run_id=parent.run_id,
        sweep_id="sweep-1",
        keep_checkpoints=1,
        mode="max",
    )


def _callback(
    folder: Path, uri: str, parent: ParentRun, tuned: tuple[str, ...] = ("lr",), **more: Any
) -> SweepTrackingCallback:
    return SweepTrackingCallback(
        target=_target(uri, parent),
        spool_dir=folder / "tracking",
        tuned=tuned,
        params=initial_params,
        **more,
    )


def _tuner(folder: Path, callback: SweepTrackingCallback, iterations: int, **spec: Any) -> tune.Tuner:
    random.seed(1)  # where the scheduler draws from
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="episode_reward_mean",
        mode="max",
        perturbation_interval=3,
        hyperparam_mutations={"hyperparameters": {"lr": [0.001, 0.1, 1.0]}},
        quantile_fraction=0.5,
    )
    return tune.Tuner(
        tune.with_resources(Counting, {"cpu": 0.5}),
        param_space={
            "spec": {"folder": str(folder), "sweep_id": "sweep-1", **spec},
            "hyperparameters": {"lr": tune.grid_search([0.001, 0.1, 1.0])},
        },
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            stop={"training_iteration": iterations},
            callbacks=[callback, CSVLoggerCallback(), JsonLoggerCallback()],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=3, checkpoint_at_end=True),
        ),
    )


def _children(uri: str, parent: ParentRun) -> list[Run]:
    return MlflowClient(uri).search_runs([parent.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'")


def _steps(uri: str, run: Run, metric: str) -> list[int]:
    return sorted(point.step for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric))


@pytest.mark.usefixtures("local_ray")
def test_population_based_training_runs_through_and_is_tracked_as_the_contract_says(
    tmp_path: Path, uri: str, parent: ParentRun
) -> None:
    callback = _callback(tmp_path, uri, parent)
    grid = _tuner(tmp_path, callback, iterations=24).fit()
    assert not grid.errors
    summary = callback.drain(60)
    assert summary.complete, summary.describe()
    assert not (tmp_path / "tracking").exists()

    runs = _children(uri, parent)
    assert len(runs) == 3
    assert sorted(run.data.params["lr"] for run in runs) == ["0.001", "0.1", "1.0"]
    changed = 0
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.params.keys() == {"env", "lr"}
        assert run.data.tags["mlflow.runName"] == run.data.tags["trial_name"] == run.info.run_name
        assert run.data.tags["plato.sweep_id"] == "sweep-1"
        assert run.data.tags["plato.trial_id"] in run.data.tags["trial_name"]
        assert run.data.metrics.keys() == {*CONTRACT_METRICS, *LEARNER_METRICS, "hp/lr"}
        assert _steps(uri, run, "training_iteration") == list(range(1, 25))
        assert _steps(uri, run, "episode_reward_mean") == list(range(2, 25)), "an unknown return is not logged"
        assert run.data.metrics["done"] == 1.0
        history = MlflowClient(uri).get_metric_history(run.info.run_id, "hp/lr")
        changed += len({point.value for point in history}) > 1
        names = [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)]
        assert names[-3:] == ["params.json", "progress.csv", "result.json"]
        checkpoints = [name for name in names if name.startswith("checkpoint_")]
        assert checkpoints[-1] == "checkpoint_000024"
        assert len(checkpoints) <= 2, "the best and the last"
        for name in checkpoints:
            files = [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, name)]
            assert files == [f"{name}/manifest.json", f"{name}/weight.json"]
    assert changed, "the test must see an exploit"


@pytest.mark.usefixtures("local_ray")
def test_a_failed_trial_says_why_and_goes_on_in_the_same_run_after_a_restore(
    tmp_path: Path, uri: str, parent: ParentRun
) -> None:
    callback = _callback(tmp_path, uri, parent)
    grid = _tuner(tmp_path, callback, iterations=6, fails_at=5).fit()
    assert len(grid.errors) == 3
    assert callback.drain(60).complete
    failed = {run.info.run_id: run for run in _children(uri, parent)}
    assert {run.info.status for run in failed.values()} == {"FAILED"}
    assert {run.data.tags["plato.error"] for run in failed.values()} == {"ValueError: the environment fell over"}

    (tmp_path / "mended").touch()
    tuner = tune.Tuner.restore(str(tmp_path / "tune"), tune.with_resources(Counting, {"cpu": 0.5}), resume_errored=True)
    grid = tuner.fit()
    assert not grid.errors
    assert tuner._local_tuner is not None
    callbacks = tuner._local_tuner.get_run_config().callbacks or []
    (again,) = [callback for callback in callbacks if isinstance(callback, SweepTrackingCallback)]
    assert again.drain(60).complete
    runs = _children(uri, parent)
    assert {run.info.run_id for run in runs} == failed.keys(), "no trial has a second run"
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["plato.error"] == "", "it went on and did not fail again"
        steps = _steps(uri, run, "training_iteration")
        assert steps == sorted(set(steps))
        assert steps[-1] == 6


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("killed", "status"), [(True, "KILLED"), (False, "FINISHED")])
def test_trials_that_tune_stops_without_a_word_are_ended_with_the_experiment(
    tmp_path: Path, uri: str, parent: ParentRun, killed: bool, status: str
) -> None:
    callback = _callback(tmp_path, uri, parent, cancelled=lambda: killed)
    trial = _trial(tmp_path, "a0001")
    callback.setup()
    callback.log_trial_start(trial)
    callback.log_trial_result(1, trial, {"training_iteration": 1, "episode_reward_mean": 1.0})
    callback.on_experiment_end([trial])
    callback.on_experiment_end([trial])
    assert callback.drain(60).complete
    (run,) = _children(uri, parent)
    assert run.info.status == status


@pytest.mark.usefixtures("local_ray")
def test_a_trial_that_fails_before_it_starts_has_a_failed_run(tmp_path: Path, uri: str, parent: ParentRun) -> None:
    callback = _callback(tmp_path, uri, parent)
    callback.setup()
    callback.log_trial_end(_trial(tmp_path, "a0001"), failed=True)
    callback.log_trial_end(_trial(tmp_path, "a0002"), failed=False)  # stopped while it was waiting
    assert callback.drain(60).complete
    (run,) = _children(uri, parent)
    assert run.info.status == "FAILED"
    assert run.data.tags["plato.trial_id"] == "a0001"


def _trial(folder: Path, trial_id: str) -> Trial:
    storage = StorageContext(storage_path=str(folder), experiment_dir_name="tune", trial_dir_name=trial_id)
    config = {"spec": {}, "hyperparameters": {"lr": 0.1}}
    return Trial("Counting", trial_id=trial_id, config=config, storage=storage, stub=True)


def _checkpoint(callback: SweepTrackingCallback, trial: Trial, folder: Path, iteration: int) -> None:
    folder.mkdir(parents=True)
    (folder / "weight.json").write_text("1.0")
    write_manifest(
        folder,
        sweep_id="sweep-1",
        trial_id=trial.trial_id,
        trial_name=str(trial),
        iteration=iteration,
        metric="episode_reward_mean",
        score=float(iteration),
        hyperparameters={},
        versions={},
    )
    callback.on_checkpoint(iteration, [trial], trial, tune.Checkpoint(str(folder)))


def _killed(folder: Path, uri: str, parent: ParentRun, trial: Trial) -> Path:
    """A sweep's folder as `kill -9` leaves it: the trial's first three steps and a checkpoint are in the store."""
    callback = _callback(folder / "alive", uri, parent)
    callback.log_trial_start(trial)
    for step in (1, 2, 3):
        callback.log_trial_result(step, trial, {"training_iteration": step})
    _checkpoint(callback, trial, folder / "first", 2)
    deadline = time.monotonic() + 180
    held = callback.spool_dir / "held"
    while callback.writer.summary().pending_ops or [*held.glob("*/*")]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # What is on the disk at any moment; what is being written comes and goes.
    shutil.copytree(callback.spool_dir, folder / "killed" / "tracking", ignore=shutil.ignore_patterns("*.partial"))
    assert callback.drain(30).complete
    return folder / "killed"


def _assert_goes_on(sweep: Path, uri: str, parent: ParentRun, trial: Trial) -> None:
    """Steps 2 and 3 are trained again, and 4 is new; nothing of it is in the store twice."""
    callback = _callback(sweep, uri, parent)
    callback.log_trial_start(trial)
    for step in (2, 3, 4):
        callback.log_trial_result(step, trial, {"training_iteration": step})
    _checkpoint(callback, trial, sweep / "second", 4)
    callback.log_trial_end(trial)
    summary = callback.drain(30)
    assert summary.complete, summary.describe()
    (run,) = _children(uri, parent)
    assert run.info.status == "FINISHED"
    assert _steps(uri, run, "training_iteration") == [1, 2, 3, 4]


def _journaled(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("journal-*")) for line in file.read_text().splitlines()]


@pytest.mark.usefixtures("local_ray")
def test_tunes_loop_never_opens_a_connection_and_loses_nothing_while_the_store_is_away(
    tmp_path: Path, parent: ParentRun
) -> None:
    opened: list[str] = []
    watched: list[int | None] = [None]

    def audit(event: str, args: tuple[Any, ...]) -> None:
        connects = event in ("socket.connect", "socket.getaddrinfo", "sqlite3.connect")
        if connects and threading.get_ident() == watched[0]:
            opened.append(event)

    sys.addaudithook(audit)  # there is no way to remove one; it does nothing once nobody is watched
    trial = _trial(tmp_path, "a0001")
    callback = _callback(tmp_path, "http://127.0.0.1:9", parent)
    watched[0] = threading.get_ident()
    callback.setup()
    callback.log_trial_start(trial)
    for step in range(1, 501):
        result = dict.fromkeys(CONTRACT_METRICS, 1.5) | {"training_iteration": step}
        callback.log_trial_result(step, trial, result)
    callback.log_trial_end(trial)
    watched[0] = None
    assert opened == []
    summary = callback.drain(0.2)
    assert summary.pending_ops == 503
    assert [op["step"] for op in _journaled(tmp_path / "tracking") if op["op"] == "metrics"] == list(range(1, 501))


@pytest.mark.usefixtures("local_ray")
def test_steps_params_and_runs_are_never_journaled_twice(tmp_path: Path, parent: ParentRun) -> None:
    trial = _trial(tmp_path, "a0001")
    first = _callback(tmp_path, "http://127.0.0.1:9", parent)
    first.setup()
    first.log_trial_start(trial)
    for step in (1, 2, 3):
        first.log_trial_result(step, trial, {"training_iteration": step, "hp/lr": 0.1})
    first.writer.close()  # as good as killed: Tune has saved no state, the journal has it all

    second = _callback(tmp_path, "http://127.0.0.1:9", parent)
    second.setup()
    second.log_trial_start(trial)
    for step in (2, 3, 4):
        second.log_trial_result(step, trial, {"training_iteration": step, "hp/lr": 0.1})
    second.writer.close()
    ops = _journaled(tmp_path / "tracking")
    assert [op["op"] for op in ops] == ["create", "params", *["metrics"] * 4]
    assert [op["step"] for op in ops[2:]] == [1, 2, 3, 4]


@pytest.mark.usefixtures("local_ray")
def test_only_names_of_the_contract_with_finite_values_are_logged_and_at_most_fifty(
    tmp_path: Path, parent: ParentRun
) -> None:
    tuned = tuple(f"h{i}" for i in range(40))
    callback = _callback(tmp_path, "http://127.0.0.1:9", parent, tuned)
    trial = _trial(tmp_path, "a0001")
    callback.setup()
    callback.log_trial_start(trial)
    everything = dict.fromkeys([*CONTRACT_METRICS, *LEARNER_METRICS, *(f"hp/{name}" for name in tuned)], 1.0)
    noise = {"training_iteration": 1, "date": "today", "node_ip": "::1", "config": {"lr": 1}, "other": 3.0}
    callback.log_trial_result(1, trial, everything | noise)
    unfit = {
        "episode_reward_mean": float("nan"),
        "kl": float("inf"),
        "entropy": None,
        "pid": "x",
        "hp/h0": "relu",
    }
    callback.log_trial_result(2, trial, {"training_iteration": 2, "done": True, **unfit})
    callback.writer.close()
    *_, full, sparse = _journaled(tmp_path / "tracking")
    assert len(full["values"]) == 50
    assert full["values"].keys() <= everything.keys()
    assert sparse["values"] == {"training_iteration": 2.0, "done": 1.0}


def test_the_callback_can_be_pickled_while_it_works(tmp_path: Path, uri: str, parent: ParentRun) -> None:
    trial = _trial(tmp_path, "a0001")
    callback = _callback(tmp_path, uri, parent)
    callback.log_trial_start(trial)
    callback.log_trial_result(1, trial, {"training_iteration": 1, "pid": 7})
    copy = pickle.loads(pickle.dumps(callback))
    assert callback.drain(30).complete
    copy.log_trial_start(trial)
    copy.log_trial_result(2, trial, {"training_iteration": 2, "pid": 7})
    copy.log_trial_end(trial)
    assert copy.drain(30).complete
    (run,) = _children(uri, parent)
    assert _steps(uri, run, "pid") == [1, 2]


def test_a_sweep_in_which_no_trial_started_has_nothing_to_send(tmp_path: Path, uri: str, parent: ParentRun) -> None:
    callback = _callback(tmp_path, uri, parent)
    callback.setup()
    callback.on_experiment_end([_trial(tmp_path, "a0001")])
    assert callback.drain(30).complete
    assert _children(uri, parent) == []


@pytest.mark.parametrize("flushed", [False, True])
def test_a_killed_sweep_goes_on_in_the_same_runs_also_after_a_flush(
    tmp_path: Path, uri: str, parent: ParentRun, flushed: bool
) -> None:
    trial = _trial(tmp_path, "a0001")
    sweep = _killed(tmp_path, uri, parent, trial)
    if flushed:
        assert flush_command(sweep) == 0
        assert not (sweep / "tracking").exists()
    _assert_goes_on(sweep, uri, parent, trial)
    (run,) = _children(uri, parent)
    names = [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)]
    assert names == ["checkpoint_000004"], "what the first attempt had sent is known, and deleted"


@pytest.mark.parametrize("content", [b"", b"\0" * 60], ids=["empty", "zeros"])
@pytest.mark.parametrize("name", ["tracking/runs.json", "tracking/cursor.json"])
def test_a_spool_damaged_by_a_loss_of_power_goes_on_in_the_same_runs(
    tmp_path: Path, uri: str, parent: ParentRun, name: str, content: bytes
) -> None:
    trial = _trial(tmp_path, "a0001")
    sweep = _killed(tmp_path, uri, parent, trial)
    assert (sweep / name).exists()
    (sweep / name).write_bytes(content)
    _assert_goes_on(sweep, uri, parent, trial)


def test_a_trial_whose_record_is_damaged_is_running_while_it_goes_on(
    tmp_path: Path, uri: str, parent: ParentRun
) -> None:
    trial = _trial(tmp_path, "a0001")
    callback = _callback(tmp_path, uri, parent, cancelled=lambda: True)
    callback.log_trial_start(trial)
    callback.log_trial_result(1, trial, {"training_iteration": 1})
    callback.log_trial_end(trial)
    assert callback.drain(30).complete
    assert [run.info.status for run in _children(uri, parent)] == ["KILLED"]
    (tmp_path / "runs.json").write_bytes(b"\0" * 60)
    callback = _callback(tmp_path, uri, parent)
    callback.log_trial_start(trial)
    callback.log_trial_result(1, trial, {"training_iteration": 1})
    assert callback.drain(30).complete
    (run,) = _children(uri, parent)
    assert run.info.status == "RUNNING"
    assert _steps(uri, run, "training_iteration") == [1]


def test_the_end_that_a_sweep_left_to_flush_does_not_end_it_once_it_goes_on(
    tmp_path: Path, uri: str, parent: ParentRun
) -> None:
    (tmp_path / "lineage.jsonl").touch()
    left = {"plato.error": "cancelled"}
    files = [tmp_path / "lineage.jsonl"]
    leave_to_flush(
        tmp_path / "tracking", _target(uri, parent), "KILLED", tags=left, metrics={"fit_s": 1.0}, files=files
    )
    reopen_parent(uri, parent)
    callback = _callback(tmp_path, uri, parent)
    callback.log_trial_start(_trial(tmp_path, "a0001"))
    assert callback.drain(30).complete
    run = MlflowClient(uri).get_run(parent.run_id)
    assert run.info.status == "RUNNING"
    assert "plato.error" not in run.data.tags
    assert len(_children(uri, parent)) == 1

"""Trials whose process dies or whose environment raises: they start again, or fail alone, and the sweep goes on."""

import csv
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.exceptions import RayActorError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from sweeps import SMALL, Listening, iterations, on_disk, packed, sweep
from test_scheduler import MUTATIONS, Controller
from thorough import soaked, thorough
from trials import PPO, learner, spec, trial

from plato_core.config import SweepConfig
from plato_core.errors import SweepError, TrialError
from plato_core.manifest import read_manifest
from plato_core.sweep import channel, lineage, population, runner
from plato_core.sweep.events import Event, TrialEnded, TrialRestarted
from plato_core.sweep.packing import Packing
from plato_core.sweep.protocol import TRACKING_FOLDER, Go
from plato_core.sweep.room import ROOM
from plato_core.sweep.scheduler import ResidentPBT, build_scheduler
from plato_core.sweep.stopping import STATE, StopState
from plato_core.sweep.trial import SweepTrial
from plato_core.tracking.callback import SweepTrackingCallback
from plato_core.tracking.parent import open_parent
from plato_core.tracking.spool import Target
from plato_core.training import health
from plato_core.training.spec import Resume, mlflow_params, resumed_config

ITERATIONS, INTERVAL = 10, 2
KILLED = "its process died: killed (out of memory, perhaps), crashed, or ended by its environment"


@pytest.fixture
def asks(tmp_path: Path) -> Path:
    """The folder in which the environments look for what they are to do."""
    folder = tmp_path / "asks"
    folder.mkdir()
    return folder


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What the sweep tells its parent of trials that fail."""
    events: list[Event] = []
    monkeypatch.setattr("plato_core.sweep.observer.emit", events.append)
    return events


def config(asks: Path, **changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "env_name": "odd_envs:Fragile-v0",
        "env_config": {"folder": str(asks)},
        "num_tune_samples": 2,
        "perturbation_interval": INTERVAL,
        "quantile_fraction": 0.5,
        "max_iterations": ITERATIONS,
        "max_failures": 1,
        "seed": 3,
        "hyperparameters": {**SMALL, "num_envs_per_env_runner": 1},
        "mutations": {"lr": MUTATIONS["lr"]},
    }
    return SweepConfig.model_validate({**values, **changes})


class Script(SweepTrackingCallback):
    """Tracks for real, and has three trials fail in an order that files make them keep to, whoever is faster.

    Trial 2 ends its process after its second iteration, and raises two iterations later. Trial 1 is killed after its
    third, and goes on from its fifth once trial 2 has failed for good. When it has been judged again, trial 0 takes
    over its policy, and is killed at that moment.
    """

    asks: Path

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        super().log_trial_result(iteration, trial, result)
        index, count, pid = trial.config["index"], result["training_iteration"], result["pid"]
        again = trial.num_failures > 0
        match index, count:
            case 0, 3:
                self._ask(pid, "wait one is judged")
            case 0, 4 if not again:
                os.kill(pid, signal.SIGKILL)
                (self.asks / "zero has exploited").touch()
            case 1, 3 if not again:
                os.kill(pid, signal.SIGKILL)
            case 1, 5:
                self._ask(pid, "wait two has failed")
            case 1, 7:
                (self.asks / "one is judged").touch()
                self._ask(pid, "wait zero has exploited")
            case 2, 2:
                self._ask(pid, "exit")
            case 2, 3:
                self._ask(pid, "raise")

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        super().log_trial_end(trial, failed)
        if failed:
            (self.asks / "two has failed").touch()

    def _ask(self, pid: int, what: str) -> None:
        partial = self.asks / "partial"
        partial.write_text(what)
        partial.rename(self.asks / str(pid))


def steps(uri: str, run: Run, metric: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def test_trials_start_again_where_they_stood_or_fail_alone(
    small_ray: None, tmp_path: Path, asks: Path, told: list[Event]
) -> None:
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "sweep"
    parent = open_parent(uri, "pbt", "sweep", {}, {})
    vars(STATE).update(vars(StopState()))
    channel._go = Go(tracking_uri=uri, experiment_id=parent.experiment_id, parent_run_id=parent.run_id)
    channel._go_came.set()
    settings, packing = config(asks, num_tune_samples=3), packed(3)  # a CPU each: they wait for one another
    target = Target(
        tracking_uri=uri,
        experiment_id=parent.experiment_id,
        parent_run_id=parent.run_id,
        sweep_id="sweep-1",
        keep_checkpoints=settings.keep_checkpoints,
        mode=settings.mode,
    )
    tracking = Script(target=target, spool_dir=folder / TRACKING_FOLDER, tuned=["lr"], params=mlflow_params)
    tracking.asks = asks
    configs = population.trial_configs(settings, "sweep-1", packing)
    runner.fit(settings, configs=configs, packing=packing, sweep_dir=folder, tracking=tracking)
    assert tracking.drain(60).complete

    restarts = {event.trial: (event.iteration, event.error) for event in told if isinstance(event, TrialRestarted)}
    assert restarts == {"1_00000": (4, KILLED), "1_00001": (2, KILLED), "1_00002": (2, KILLED)}
    ends = {event.trial: (event.status, event.error) for event in told if isinstance(event, TrialEnded)}
    failed = ("FAILED", "ValueError: broken sensor")
    assert ends == {"1_00000": ("FINISHED", None), "1_00001": ("FINISHED", None), "1_00002": failed}

    (exploit,) = [e for e in lineage.read(folder / lineage.LINEAGE_NAME) if (e.trial, e.iteration) == ("1_00000", 4)]
    assert (exploit.donor, exploit.donor_iteration) == ("1_00001", 6)
    logs = {name: _log(folder, name) for name in ends}
    after = logs["1_00000"][4]
    assert after["hp/lr"] == exploit.new["lr"], "what it took over holds in the new process"
    assert after["iterations_since_restore"] == 1

    runs = {
        run.data.tags["plato.trial_id"]: run
        for run in MlflowClient(uri).search_runs([parent.experiment_id])
        if "plato.trial_id" in run.data.tags
    }
    assert {name: (run.info.status, run.data.tags.get("plato.error")) for name, run in runs.items()} == ends
    for name, results in logs.items():
        whole = list(range(1, (3 if name == "1_00002" else ITERATIONS) + 1))
        assert iterations(results) == whole
        assert _csv_iterations(folder, name) == whole
        assert steps(uri, runs[name], "episode_len_mean") == whole
        assert results[-1]["num_env_steps_sampled"] == sum(r["num_env_steps_sampled_this_iter"] for r in results)
        assert results[-1]["time_total_s"] == pytest.approx(sum(r["time_this_iter_s"] for r in results))
        kept = sorted(read_manifest(path).iteration for path in _folder(folder, name).glob("checkpoint_*"))
        assert kept[-1] == (2 if name == "1_00002" else ITERATIONS)
        assert len(kept) <= settings.keep_checkpoints + 1


def _folder(sweep_dir: Path, name: str) -> Path:
    return next((sweep_dir / "tune").glob(f"*{name}"))


def _log(sweep_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_folder(sweep_dir, name) / "result.json").read_text().splitlines()]


def _csv_iterations(sweep_dir: Path, name: str) -> list[int]:
    with (_folder(sweep_dir, name) / "progress.csv").open(newline="") as file:
        return [int(row["training_iteration"]) for row in csv.DictReader(file)]


def test_a_trial_that_cannot_be_built_fails_alone(
    small_ray: None, tmp_path: Path, asks: Path, told: list[Event]
) -> None:
    (asks / "make").write_text("raise")
    swept = sweep(config(asks, max_failures=0, max_iterations=2), tmp_path / "sweep")

    (failed,) = [event for event in told if isinstance(event, TrialEnded) and event.status == "FAILED"]
    assert (failed.iteration, failed.error) == (0, "ValueError: no sensor")
    ((trained, results),) = swept.results.items()
    assert trained != failed.trial
    assert iterations(results) == [1, 2]


def test_a_sweep_of_which_every_trial_fails_says_what_the_first_failed_with(
    small_ray: None, tmp_path: Path, asks: Path
) -> None:
    (asks / "make").write_text("raise")
    with pytest.raises(SweepError, match=r"^every trial failed, the first with: ValueError: no sensor$"):
        sweep(config(asks, max_failures=0, num_tune_samples=1), tmp_path / "sweep")


class Kills(Listening):
    """Kills a process after the third result of the last trial.

    Args:
        victim: Given that result, the process.
    """

    def __init__(self, victim: Callable[[dict[str, Any]], int]) -> None:
        super().__init__()
        self._victim = victim

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        super().on_trial_result(iteration, trials, trial, result, **info)
        if trial.config["index"] == len(trials) - 1 and len(self.results[trial.trial_id]) == 3:
            os.kill(self._victim(result), signal.SIGKILL)


@thorough
def test_a_trial_that_waits_for_its_turn_starts_again_too(small_ray: None, tmp_path: Path, asks: Path) -> None:
    kills = Kills(lambda result: result["pid"])
    swept = sweep(config(asks, max_iterations=4), tmp_path / "sweep", packed(2, resident=1), listening=kills)
    assert [iterations(on_disk(swept, name)) for name in swept.results] == [[1, 2, 3, 4]] * 2
    assert [iterations(results) for results in swept.results.values()] == [[1, 2, 3, 4], [1, 2, 3, 3, 4]]


def env_runner_of(result: dict[str, Any]) -> int:
    of_this_ray = psutil.Process().children(recursive=True)
    (pid,) = [process.pid for process in of_this_ray if process.name().startswith("ray::SingleAgent")]
    return pid


def test_an_env_runner_that_dies_costs_no_iteration_and_no_restart(
    small_ray: None, tmp_path: Path, asks: Path, told: list[Event]
) -> None:
    alone = config(asks, num_tune_samples=1, num_env_runners=1, max_failures=0)
    swept = sweep(alone, tmp_path / "sweep", packed(1), listening=Kills(env_runner_of))
    ((name, results),) = swept.results.items()
    assert iterations(results) == list(range(1, ITERATIONS + 1))
    sampled = [result["num_env_steps_sampled_this_iter"] for result in results]
    assert min(sampled) > 0, "an iteration without a sample is none"
    assert results[-1]["num_remote_worker_restarts"] == 1
    assert swept.starts == {name: 1}


def test_env_runners_that_sample_nothing_are_a_failure_with_the_environments_own_error(
    small_ray: None, asks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "NOTHING_SAMPLED_S", 1.0)
    broken = {"folder": str(asks), "broken": True}
    of = spec(env_name="odd_envs:Fragile-v0", env_config=broken, num_env_runners=1)
    with (
        trial(PPO, of) as trainable,
        pytest.raises(TrialError, match=r"nothing .*: ValueError: broken sensor"),
    ):
        trainable.train()


def test_a_policy_that_is_no_number_any_more_is_a_failure(small_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The returns of that iteration are fine still: it was sampled with the policy before."""
    with trial(PPO) as trainable:
        train = trainable.algorithm.train

        def diverge() -> Any:
            result = train()
            next(learner(trainable.algorithm).module[DEFAULT_MODULE_ID].parameters()).data[:] = math.nan
            return result

        trainable.train()
        monkeypatch.setattr(trainable.algorithm, "train", diverge)
        with pytest.raises(TrialError, match="NaN"):
            trainable.train()


def _judge(tmp_path: Path, count: int) -> tuple[ResidentPBT, Any, list[Trial]]:
    """A PBT scheduler with trials that have been judged, of which the last is the best."""
    judge = build_scheduler(config(tmp_path), seed=1, resident=True, lineage_path=tmp_path / "lineage.jsonl")
    assert isinstance(judge, ResidentPBT)
    trials = [Trial("PPO", stub=True) for _ in range(count)]
    controller: Any = Controller(trials)
    for index, each in enumerate(trials):
        each.set_status(Trial.RUNNING)
        judge.on_trial_add(controller, each)
        judge._trial_state[each].last_score = float(index)
    return judge, controller, trials


@pytest.mark.parametrize("score", [math.inf, -math.inf, math.nan])
def test_a_score_that_is_no_number_neither_gives_nor_takes(score: float, tmp_path: Path) -> None:
    judge, _, trials = _judge(tmp_path, 4)
    judge._save_trial_state(judge._trial_state[trials[3]], 2, {"episode_reward_mean": score}, trials[3])
    assert judge._quantiles() == ([trials[0]], [trials[2]])


def test_a_trial_that_starts_again_neither_gives_nor_takes_until_it_is_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, controller, trials = _judge(tmp_path, 4)
    results = ({"training_iteration": count, "time_total_s": float(count)} for count in range(1, 8))
    (tmp_path / "result.json").write_text("".join(f"{json.dumps(result)}\n" for result in results))
    monkeypatch.setattr(Trial, "path", property(lambda self: str(tmp_path)))
    # Of a sweep that was resumed: at first it is a donor by what it was resumed from.
    resume = Resume(str(tmp_path), own={"iteration": 2}, judged_at=2.0, score=9.0)
    trials[3].config = resumed_config({}, {}, resume)
    manager: Any = trials[3].run_metadata.checkpoint_manager
    manager._latest_checkpoint_result = _TrainingResult(Checkpoint(str(tmp_path)), {"training_iteration": 5})

    judge.on_trial_add(controller, trials[3])

    assert judge._quantiles() == ([trials[0]], [trials[2]])
    assert judge._trial_state[trials[3]].last_perturbation_time == 4, "of those that it keeps, the fourth was judged"


NODE_DIED = "The actor died because its node has died. Node Id: 1f\n\tthe actor's node was terminated unexpectedly"
DOES_NOT_ANSWER = "The actor 1f is unavailable: The actor is temporarily unavailable: RpcError: Socket closed"
PROCESS_DIED = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"


def _lose(trial: SweepTrial, words: str = NODE_DIED) -> int:
    """Has a trial fail with Ray's words; how many failures count by now."""
    trial.handle_error(RayActorError(actor_id="1f", error_msg=words))
    return trial.num_failures


def _reaches(trial: SweepTrial, checkpoint: int) -> None:
    manager: Any = trial.run_metadata.checkpoint_manager
    manager._latest_checkpoint_result = _TrainingResult(Checkpoint("/somewhere"), {"training_iteration": checkpoint})


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> SweepTrial:
    """A trial without a folder."""
    monkeypatch.setattr(Trial, "local_path", None)
    return SweepTrial.of(Trial("PPO", stub=True))


def test_a_lost_node_counts_only_where_the_trial_has_not_come_further_since_the_last(losing: SweepTrial) -> None:
    trial = losing
    assert (_lose(trial), trial.lost_node) == (0, True)
    assert (_lose(trial, DOES_NOT_ANSWER), trial.lost_node) == (0, True), "it may be the same node still"
    trial._spared = 0, time.monotonic() - 100.0
    assert (_lose(trial), trial.lost_node) == (1, False), "it may be the trial that takes its nodes down"
    _reaches(trial, 4)
    assert (_lose(trial), trial.lost_node) == (1, True)
    assert (_lose(trial, PROCESS_DIED), trial.lost_node) == (2, False)


def test_a_process_that_died_shortly_before_its_node_was_missed_does_not_count(losing: SweepTrial) -> None:
    trial = losing
    trial.update_last_result({"node_ip": "10.0.0.5", "training_iteration": 3})
    assert _lose(trial, PROCESS_DIED) == 1
    trial.node_is_lost("10.0.0.6")
    assert trial.num_failures == 1
    trial.node_is_lost("10.0.0.5")
    assert trial.num_failures == 0
    trial.node_is_lost("10.0.0.5")
    assert trial.num_failures == 0, "once"


def test_resident_trials_make_room_only_where_the_nodes_lack_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, controller, trials = _judge(tmp_path, 4)
    trials[0].set_status(Trial.PENDING)
    result = {"training_iteration": INTERVAL, "time_total_s": 1.0, "episode_reward_mean": 1.5}
    decisions = []
    for room, last in ((None, Trial.RUNNING), (4, Trial.RUNNING), (3, Trial.RUNNING), (3, Trial.PENDING)):
        trials[3].set_status(last)
        monkeypatch.setattr(ROOM, "trials", room)
        state: Any = judge._trial_state[trials[1]]
        state.last_perturbation_time = 0
        decisions.append(judge.on_trial_result(controller, trials[1], dict(result)))
    assert decisions == ["CONTINUE", "CONTINUE", "PAUSE", "CONTINUE"], "the last: there is a free place already"


class Crowded(Listening):
    """Says, from the first start on, that there is room for one trial only, as after the loss of a node."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        super().on_trial_start(iteration, trials, trial, **info)
        ROOM.trials = 1


@soaked
def test_where_nodes_lack_room_trials_take_turns_and_each_comes_to_its_end(
    small_ray: None, tmp_path: Path, asks: Path
) -> None:
    alone = Packing(slots=4, resident=2, cpus_per_trial=4.0, gpus_per_trial=0.0)
    swept = sweep(config(asks, max_iterations=4), tmp_path / "sweep", alone, listening=Crowded())
    assert [iterations(results) for results in swept.results.values()] == [[1, 2, 3, 4]] * 2
    assert [iterations(on_disk(swept, name)) for name in swept.results] == [[1, 2, 3, 4]] * 2
    assert sorted(swept.starts.values()) == [2, 2], "both paused once"

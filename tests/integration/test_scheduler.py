"""Schedulers in real sweeps of tiny networks: who exploits whom, what each trial reports, unknown returns."""

import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from sweeps import SMALL, Listening, Swept, iterations, on_disk, packed, sweep
from thorough import SOAKED

from plato_core.config import SweepConfig
from plato_core.manifest import read_manifest
from plato_core.search_space import contains
from plato_core.sweep.scheduler import ResidentPBT, build_scheduler

MUTATIONS: dict[str, Any] = {
    "lr": {"type": "loguniform", "low": 3e-4, "high": 3e-3},
    "lambda": {"type": "uniform", "low": 0.85, "high": 0.95},
    "clip_param": [0.1, 0.2, 0.3],
    "num_sgd_iter": {"type": "integer", "low": 1, "high": 3},
    "sgd_minibatch_size": {"type": "integer", "low": 32, "high": 160},
    "train_batch_size": {"type": "integer", "low": 96, "high": 192},
}
ITERATIONS, INTERVAL = 8, 2


def _config(**changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "num_tune_samples": 4,
        "perturbation_interval": INTERVAL,
        "quantile_fraction": 0.5,
        "max_iterations": ITERATIONS,
        "seed": 3,
        "hyperparameters": {k: v for k, v in SMALL.items() if k not in MUTATIONS},
        "mutations": MUTATIONS,
    }
    return SweepConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module", params=["resident", "taking turns"])
def swept(request: pytest.FixtureRequest, small_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    return sweep(_config(), folder, packed(4, resident=4 if request.param == "resident" else 2))


def test_every_trial_counts_its_own_iterations_without_a_gap(swept: Swept) -> None:
    assert len(swept.results) == 4
    for results in swept.results.values():
        assert iterations(results) == list(range(1, ITERATIONS + 1))
        for name in ("num_env_steps_sampled", "episodes_total", "time_total_s"):
            totals = [result[name] for result in results]
            assert totals == sorted(totals), name
        sampled = [result["num_env_steps_sampled_this_iter"] for result in results]
        assert results[-1]["num_env_steps_sampled"] == sum(sampled)


def test_population_is_compared_while_it_trains(swept: Swept) -> None:
    """Every trial has begun before the first has ended, so that each can be a donor for each."""
    begun = max(results[0]["timestamp"] for results in swept.results.values())
    ended = min(results[-1]["timestamp"] for results in swept.results.values())
    assert begun <= ended


def test_exploits_happen(swept: Swept) -> None:
    assert swept.exploits  # how many depends on which trial is judged when


def test_lineage_agrees_with_what_the_trials_reported(swept: Swept) -> None:
    for exploit in swept.exploits:
        assert exploit.donor != exploit.trial
        assert exploit.iteration % INTERVAL == 0
        assert 0 < exploit.iteration < ITERATIONS
        assert exploit.checkpoint == f"checkpoint_{exploit.donor_iteration:06d}"
        before, after = (swept.at(exploit.trial, exploit.iteration + i) for i in (0, 1))
        assert exploit.score == before["episode_reward_mean"]
        assert exploit.old == {name: before[f"hp/{name}"] for name in MUTATIONS}
        assert exploit.new == {name: after[f"hp/{name}"] for name in MUTATIONS}
        assert after["iterations_since_restore"] == 1
        donor = swept.at(exploit.donor, exploit.donor_iteration)
        assert exploit.donor_iteration % INTERVAL == 0
        assert exploit.donor_score == donor["episode_reward_mean"]


def test_values_change_only_where_lineage_says_so(swept: Swept) -> None:
    changed = {
        (trial, before["training_iteration"])
        for trial, results in swept.results.items()
        for before, after in itertools.pairwise(results)
        if any(before[f"hp/{name}"] != after[f"hp/{name}"] for name in MUTATIONS)
    }
    assert changed <= {(exploit.trial, exploit.iteration) for exploit in swept.exploits}


def test_values_stay_within_their_distributions(swept: Swept) -> None:
    mutations = _config().mutations
    for results in swept.results.values():
        for result in results:
            for name, distribution in mutations.items():
                value = result[f"hp/{name}"]
                assert contains(distribution, value), (name, value)
                assert not name.endswith(("_size", "_iter")) or isinstance(value, int), (name, value)
            assert result["hp/sgd_minibatch_size"] <= result["hp/train_batch_size"]
            # Two environments take turns, and each gets as many steps.
            assert 0 <= result["num_env_steps_sampled_this_iter"] - result["hp/train_batch_size"] <= 2


def test_checkpoints_say_what_their_trial_reported(swept: Swept) -> None:
    exploited = {(exploit.trial, exploit.iteration): exploit for exploit in swept.exploits}
    for trial, manifests in swept.checkpoints.items():
        assert manifests[-1].iteration == ITERATIONS  # the last one of each
        counts = [manifest.iteration for manifest in manifests]
        assert counts == sorted(set(counts))  # none twice
        for manifest in manifests:
            assert manifest.trial_id == trial
            result = swept.at(trial, manifest.iteration)
            exploit = exploited.get((trial, manifest.iteration))
            score = None if exploit else result["episode_reward_mean"]
            values = exploit.new if exploit else {name: result[f"hp/{name}"] for name in MUTATIONS}
            assert manifest.score == score
            assert {name: manifest.hyperparameters[name] for name in MUTATIONS} == values


def test_best_three_checkpoints_and_the_last_stay_on_disk(swept: Swept) -> None:
    for trial, manifests in swept.checkpoints.items():
        folder = next((swept.folder / "tune").glob(f"*{trial}"))
        kept = {read_manifest(path).iteration for path in folder.glob("checkpoint_*")}
        assert kept <= {manifest.iteration for manifest in manifests}
        assert ITERATIONS in kept
        assert len(kept) <= 4
        scored = [manifest for manifest in manifests if manifest.score is not None]
        best = max(scored, key=lambda manifest: manifest.score or 0.0)
        assert best.iteration in kept


def test_result_file_has_every_iteration(swept: Swept) -> None:
    for trial, results in swept.results.items():
        assert iterations(on_disk(swept, trial)) == iterations(results)


class Running(Listening):
    """Counts at each result the trials that have a process, also one that is taking another's over."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[int] = []

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        super().on_trial_result(iteration, trials, trial, result, **info)
        self.running.append(sum(each.temporary_state.ray_actor is not None for each in trials))


def test_trials_that_take_turns_leave_no_slot_idle(small_ray: None, tmp_path: Path) -> None:
    """Turns here are much shorter than the start of the second process, which no trial may call off or wait for."""
    listening = Running()
    processes = tmp_path / "processes"
    processes.mkdir()
    config = _config(
        num_tune_samples=6,
        env_name="odd_envs:SlowStart-v0",
        env_config={"folder": str(processes), "seconds": 2.0},
        hyperparameters={**_config().hyperparameters, "min_time_s_per_iteration": 0.3},
    )
    swept = sweep(config, tmp_path, packed(6, 2), listening=listening)
    both = listening.running[listening.running.index(2) :]  # from when both processes have started on
    assert len(both) > 3 * INTERVAL
    assert statistics.median(both) == 2
    turns = ITERATIONS // INTERVAL
    assert all(turns - 1 <= starts <= turns for starts in swept.starts.values())  # nobody has two while others wait
    assert len({result["pid"] for results in swept.results.values() for result in results}) == 2


def test_resident_trials_stay_in_their_processes(swept: Swept, request: pytest.FixtureRequest) -> None:
    if "resident" not in request.node.callspec.id:
        pytest.skip("trials that take turns share processes")
    pids = [{result["pid"] for result in results} for results in swept.results.values()]
    assert all(len(pid) == 1 for pid in pids)
    assert set(swept.starts.values()) == {1}
    assert len(set.union(*pids)) == 4


def _late(**changes: Any) -> SweepConfig:
    return _config(
        env_name="odd_envs:Late-v0",
        env_config={"length": 200},
        hyperparameters={**SMALL, "num_envs_per_env_runner": 1},
        mutations={"lr": MUTATIONS["lr"]},
        quantile_fraction=0.5,
        perturbation_interval=1,
        **changes,
    )


@pytest.mark.parametrize("scheduler", ["pbt", pytest.param("asha", marks=SOAKED), pytest.param("median", marks=SOAKED)])
def test_unknown_returns_never_crash_a_sweep(scheduler: str, small_ray: None, tmp_path: Path) -> None:
    """One trial knows no return before its fourth iteration, the other from its first one on."""
    config = _late(scheduler=scheduler, max_iterations=5, num_tune_samples=2)
    batches = [{"train_batch_size": size} for size in (64, 256)]
    swept = sweep(config, tmp_path, each=batches)

    assert len(swept.results) == 2
    for results in swept.results.values():
        assert iterations(results) == list(range(1, len(results) + 1))
    late = next(iter(swept.results))
    assert all(math.isnan(result["episode_reward_mean"]) for result in swept.results[late][:3])
    for exploit in swept.exploits:
        assert math.isfinite(exploit.score)
        assert math.isfinite(exploit.donor_score or math.nan)
        assert exploit.trial != late or exploit.iteration > 3
        assert exploit.donor != late or exploit.donor_iteration > 3
    for trial, manifests in swept.checkpoints.items():
        for manifest in manifests:
            if trial == late and manifest.iteration <= 3:
                assert manifest.score is None
    assert max(len(results) for results in swept.results.values()) == 5
    if scheduler != "pbt":
        assert swept.exploits == []
    # Nobody leaves a process that keeps the whole population: coming back costs seconds.
    assert set(swept.starts.values()) == {1}


class Controller:
    """As much of Tune's controller as the early-stopping schedulers look at."""

    search_alg = None

    def __init__(self, trials: list[Trial]) -> None:
        self._trials = trials

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self._trials if not trial.is_finished()]

    get_trials = get_live_trials


def _judged(scheduler: str, returns: list[list[float]], tmp_path: Path, mode: str = "max") -> list[int]:
    """After how many iterations each trial is stopped, where all report in turns."""
    trials = [Trial("PPO", stub=True) for _ in returns]
    controller: Any = Controller(trials)
    config = _config(scheduler=scheduler, perturbation_interval=1, max_iterations=16, mode=mode)
    judge = build_scheduler(config, seed=1, resident=True, lineage_path=tmp_path / "lineage.jsonl")
    for trial in trials:
        trial.set_status(Trial.RUNNING)
        judge.on_trial_add(controller, trial)
    lasted = [0] * len(trials)
    for count in range(len(returns[0])):
        for index, trial in enumerate(trials):
            if trial.is_finished():
                continue
            result = {"training_iteration": count + 1, "episode_reward_mean": returns[index][count]}
            lasted[index] = count + 1
            if judge.on_trial_result(controller, trial, result) == TrialScheduler.STOP:
                trial.set_status(Trial.TERMINATED)
                judge.on_trial_complete(controller, trial, result)
    return lasted


@pytest.mark.parametrize("scheduler", ["asha", "median"])
@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
def test_early_stopping_takes_the_worst_and_keeps_the_best(
    scheduler: str, mode: str, sign: float, tmp_path: Path
) -> None:
    lasted = _judged(scheduler, [[sign * level] * 6 for level in (90, 70, 50, 30, 10)], tmp_path, mode)

    assert lasted[0] == 6
    assert lasted[-1] < 6


@pytest.mark.parametrize("scheduler", ["asha", "median"])
@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
def test_best_trial_is_not_stopped_for_returns_that_were_once_unknown(
    scheduler: str, mode: str, sign: float, tmp_path: Path
) -> None:
    late = [math.nan] * 2 + [90 * sign] * 4
    lasted = _judged(scheduler, [*([70 * sign] * 6 for _ in range(4)), late], tmp_path, mode)

    assert lasted[-1] == 6


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_worst_trial_is_stopped_once_its_returns_are_known(scheduler: str, tmp_path: Path) -> None:
    late = [math.nan] * 2 + [1.0] * 10
    lasted = _judged(scheduler, [*([90.0] * 12 for _ in range(4)), late], tmp_path)

    assert lasted[-1] < 12


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_unknown_returns_stop_nobody_else(scheduler: str, tmp_path: Path) -> None:
    unknown = [[math.nan] * 6 for _ in range(4)]
    assert _judged(scheduler, [*unknown, [5.0] * 6], tmp_path)[-1] == 6


def test_trial_of_unknown_returns_neither_gives_nor_takes(tmp_path: Path) -> None:
    trials = [Trial("PPO", stub=True) for _ in range(4)]
    judge = build_scheduler(_config(), seed=1, resident=True, lineage_path=tmp_path / "lineage.jsonl")
    assert isinstance(judge, ResidentPBT)
    controller: Any = Controller(trials)
    for trial in trials:
        trial.set_status(Trial.RUNNING)
        judge.on_trial_add(controller, trial)
    for trial, score in zip(trials, (math.nan, 3.0, math.nan, 5.0), strict=True):
        judge._trial_state[trial].last_score = score

    assert judge._quantiles() == ([trials[1]], [trials[3]])

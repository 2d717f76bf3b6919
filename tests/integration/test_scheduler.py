"""Schedulers in real sweeps of tiny networks: who exploits whom, what each trial reports, unknown returns."""

from pathlib import Path
from typing import Any

import pytest
from sweeps import SMALL, Swept, packed, sweep

from plato_core.config import SweepConfig
from plato_core.manifest import read_manifest
from plato_core.search_space import contains

pytestmark = pytest.mark.usefixtures("small_ray")

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
    assert len(swept.results) == swept.fitted.trials == 4
    for results in swept.results.values():
        assert [result["training_iteration"] for result in results] == list(range(1, ITERATIONS + 1))
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
    assert len(swept.exploits) >= 2
    assert len({exploit.trial for exploit in swept.exploits}) >= 2


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
        for before, after in zip(results, results[1:], strict=False)
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
            # Two environments take turns, and the batch is filled up to a whole one.
            assert 0 <= result["num_env_steps_sampled_this_iter"] - result["hp/train_batch_size"] <= 1


def test_checkpoints_say_what_their_trial_reported(swept: Swept) -> None:
    for trial, results in swept.results.items():
        folder = next((swept.folder / "tune").glob(f"*{trial}"))
        manifests = [read_manifest(path) for path in sorted(folder.glob("checkpoint_*"))]
        assert manifests[-1].iteration == ITERATIONS  # the last one of each
        assert len(manifests) <= 4  # the three best and the last
        for manifest in manifests:
            assert manifest.trial_id == trial
            result = results[manifest.iteration - 1]
            if manifest.score is not None:
                assert manifest.score == result["episode_reward_mean"]
                for name in MUTATIONS:
                    assert manifest.hyperparameters[name] == result[f"hp/{name}"]


def test_resident_trials_stay_in_their_processes(swept: Swept, request: pytest.FixtureRequest) -> None:
    if "resident" not in request.node.callspec.id:
        pytest.skip("trials that take turns share processes")
    pids = [{result["pid"] for result in results} for results in swept.results.values()]
    assert all(len(pid) == 1 for pid in pids)
    assert len(set.union(*pids)) == 4


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_early_stopping_ends_trials_and_lets_one_finish(scheduler: str, tmp_path: Path) -> None:
    config = (
        _config(scheduler=scheduler, perturbation_interval=1, max_iterations=4, mutations={})
        if False
        else (_config(scheduler=scheduler, perturbation_interval=1, max_iterations=4))
    )
    swept = sweep(config, tmp_path)

    counts = [[result["training_iteration"] for result in results] for results in swept.results.values()]
    assert len(counts) == 4
    assert all(count == list(range(1, len(count) + 1)) for count in counts)
    assert max(map(len, counts)) == 4
    assert swept.exploits == []

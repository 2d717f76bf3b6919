"""One trial: its own counters, the names it reports, and checkpoints that load with RLlib alone."""

import json
import math
import os
import pickle
import threading
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
import trials
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from trials import DQN, PPO, TINY, spec, take_over, trial

from plato_core.manifest import read_manifest
from plato_core.training.metrics import CONTRACT_METRICS, LEARNER_METRICS
from plato_core.training.trainable import AlgorithmTrainable

pytestmark = pytest.mark.usefixtures("small_ray")

# In a checkpoint: the policy alone.
POLICY = f"learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"
TOTALS = (
    "timesteps_total",
    "agent_timesteps_total",
    "num_env_steps_sampled",
    "num_agent_steps_sampled",
    "num_env_steps_trained",
    "num_agent_steps_trained",
    "episodes_total",
    "time_total_s",
)


class Algo(NamedTuple):
    name: str
    env_name: str
    hyperparameters: dict[str, Any]


ASYNCHRONOUS = {
    "lr": 1e-3,
    "train_batch_size": 128,
    "num_envs_per_env_runner": 2,
    "rollout_fragment_length": 32,
    "min_time_s_per_iteration": 0.2,
    "model_config": TINY,
}
ALGORITHMS = [
    Algo("PPO", "Pendulum-v1", {k: v for k, v in PPO.items() if k != "num_envs_per_env_runner"}),
    Algo("DQN", "CartPole-v1", DQN),
    Algo(
        "SAC",
        "Pendulum-v1",
        {
            "train_batch_size": 32,
            "num_steps_sampled_before_learning_starts": 20,
            "min_sample_timesteps_per_iteration": 40,
            "training_intensity": 32,
            "model_config": TINY,
        },
    ),
    Algo("APPO", "CartPole-v1", ASYNCHRONOUS),
    Algo("IMPALA", "CartPole-v1", ASYNCHRONOUS),
]


@pytest.mark.parametrize("algo", ALGORITHMS, ids=lambda algo: f"{algo.name}-{algo.env_name}")
def test_algorithm_trains_and_goes_on_from_its_checkpoint(algo: Algo, tmp_path: Path) -> None:
    with trial(algo.hyperparameters, spec(algo.name, algo.env_name)) as trainable:
        first = trainable.train()
        trainable.save(str(tmp_path))
        second = trainable.train()
        assert [first["training_iteration"], second["training_iteration"]] == [1, 2]
        assert first["num_env_steps_sampled_this_iter"] > 0
        assert second["num_env_steps_trained"] > 0
        assert math.isfinite(second["total_loss"])

        trainable.reset(trainable.config)
        trainable.restore(str(tmp_path))
        # What was saved, and not what was there after it: an asynchronous learner goes on meanwhile.
        saved = pickle.loads((tmp_path / POLICY / "module_state.pkl").read_bytes())
        weights = trials.learner_weights(trainable.algorithm)
        assert set(weights) == set(saved)
        for name, value in weights.items():
            np.testing.assert_array_equal(value, saved[name], err_msg=name)
        assert trainable.train()["training_iteration"] == 2


@pytest.mark.parametrize("name", ["APPO", "IMPALA"])
def test_exploits_leave_no_learner_threads_behind(name: str, tmp_path: Path) -> None:
    with trial(ASYNCHRONOUS, spec(name)) as trainable:
        trainable.train()
        trainable.save(str(tmp_path))
        before = threading.active_count()
        for _ in range(3):
            take_over(trainable, tmp_path, ASYNCHRONOUS)
            trainable.train()
        assert threading.active_count() <= before


def test_result_has_the_names_of_the_contract_and_each_tuned_value() -> None:
    tuned = ("lambda", "lr", "num_sgd_iter")
    with trial(PPO, spec(tuned=tuned)) as trainable:
        result = trainable.train()

    assert set(CONTRACT_METRICS) <= set(result)
    assert set(LEARNER_METRICS) <= set(result)
    assert {name: value for name, value in result.items() if name.startswith("hp/")} == {
        f"hp/{name}": PPO[name] for name in tuned
    }
    assert result["pid"] == os.getpid()
    assert result["done"] is False
    assert all(isinstance(result[name], int | float) for name in CONTRACT_METRICS)


def test_counters_of_an_on_policy_trial_are_what_it_sampled() -> None:
    with trial(PPO) as trainable:
        results = [trainable.train() for _ in range(3)]

    sampled = [result["num_env_steps_sampled_this_iter"] for result in results]
    assert all(128 <= steps <= 129 for steps in sampled)  # two environments take turns
    for count, result in enumerate(results, start=1):
        total = sum(sampled[:count])
        for name in ("num_env_steps_sampled", "num_env_steps_trained", "num_agent_steps_sampled"):
            assert result[name] == total, name
        for name in ("timesteps_total", "agent_timesteps_total", "num_agent_steps_trained"):
            assert result[name] == total, name
        assert result["num_steps_trained_this_iter"] == sampled[count - 1]
        assert result["num_env_steps_trained_this_iter"] == sampled[count - 1]
        assert result["episodes_total"] == sum(r["episodes_this_iter"] for r in results[:count])
        assert result["episode_reward_min"] <= result["episode_reward_mean"] <= result["episode_reward_max"]
        assert result["time_total_s"] == pytest.approx(sum(r["time_this_iter_s"] for r in results[:count]))
        assert result["timesteps_since_restore"] == total
        assert result["iterations_since_restore"] == result["training_iteration"] == count
        assert 0 < result["warmup_time"] < 60


def test_trained_steps_of_a_replaying_trial_are_its_learners() -> None:
    with trial(DQN, spec("DQN")) as trainable:
        seen = trials.watch(trainable)
        results = [trainable.train() for _ in range(2)]

    learned = [raw["learners"]["__all_modules__"]["num_env_steps_trained"] for raw in seen]
    assert [result["num_env_steps_trained_this_iter"] for result in results] == learned
    assert results[1]["num_env_steps_trained"] == sum(learned)
    assert results[1]["num_env_steps_trained"] > results[1]["num_env_steps_sampled"]  # each is used often
    assert learned[1] % DQN["train_batch_size"] == 0


def test_own_counters_go_on_through_an_exploit(tmp_path: Path) -> None:
    with trial(PPO, index=0) as donor:
        for _ in range(3):
            donor.train()
        donor.save(str(tmp_path))
    with trial(PPO, spec(tuned=("lr",)), index=1) as trainable:
        before = trainable.train()
        take_over(trainable, tmp_path, PPO | {"lr": 5e-4})
        after = [trainable.train() for _ in range(2)]

    assert [result["training_iteration"] for result in after] == [2, 3]
    assert [result["iterations_since_restore"] for result in after] == [1, 2]
    assert [result["hp/lr"] for result in (before, *after)] == [1e-3, 5e-4, 5e-4]
    assert [result["config"]["hyperparameters"]["lr"] for result in after] == [5e-4, 5e-4]
    steps = [result["num_env_steps_sampled_this_iter"] for result in (before, *after)]
    assert [result["num_env_steps_sampled"] for result in after] == [sum(steps[:2]), sum(steps)]
    assert [result["timesteps_since_restore"] for result in after] == [steps[1], steps[1] + steps[2]]
    for name in TOTALS:
        assert before[name] <= after[0][name] <= after[1][name], name
    seconds = [result["time_this_iter_s"] for result in (before, *after)]
    assert after[1]["time_total_s"] == pytest.approx(sum(seconds))
    assert after[1]["time_since_restore"] == pytest.approx(sum(seconds[1:]))


def test_own_checkpoint_brings_its_own_counters_back(tmp_path: Path) -> None:
    with trial(PPO, index=0) as trainable:
        saved = [trainable.train() for _ in range(2)][-1]
        trainable.save(str(tmp_path))
    with trial(PPO, index=0) as again:  # in a new process, with nothing but the checkpoint
        again.restore(str(tmp_path))
        result = again.train()

    assert result["training_iteration"] == 3
    assert result["iterations_since_restore"] == 1
    for name in TOTALS:
        spent = {
            "episodes_total": result["episodes_this_iter"],
            "time_total_s": result["time_this_iter_s"],
        }.get(name, result["num_env_steps_sampled_this_iter"])
        assert result[name] == pytest.approx(saved[name] + spent), name


def test_resumed_trial_that_had_exploited_keeps_its_own_count(tmp_path: Path) -> None:
    """What time-sharing does: exploit, save, leave the process to another trial, come back."""
    with trial(PPO, index=0) as donor:
        for _ in range(4):
            donor.train()
        donor.save(str(tmp_path / "donor"))
    with trial(PPO, index=1) as trainable:
        trainable.train()
        take_over(trainable, tmp_path / "donor", PPO | {"lr": 5e-4})
        exploited = trainable.config
        trainable.save(str(tmp_path / "own"))
        assert read_manifest(tmp_path / "own").iteration == 1
    with trial(PPO, index=1) as again:
        again.reset(exploited)
        again.restore(str(tmp_path / "own"))
        result = again.train()

    assert result["training_iteration"] == 2
    assert result["iterations_since_restore"] == 1


def test_checkpoint_saved_right_after_an_exploit_claims_no_old_score(tmp_path: Path) -> None:
    with trial(PPO, index=0) as donor:
        donor.train()
        donor.save(str(tmp_path / "donor"))
    with trial(PPO, index=1) as trainable:
        own = trainable.train()
        take_over(trainable, tmp_path / "donor", PPO | {"lr": 5e-4})
        saved = trainable.save(str(tmp_path / "own"))
        manifest = read_manifest(tmp_path / "own")

    assert manifest.score is None
    assert manifest.hyperparameters["lr"] == 5e-4
    # Tune takes a missing metric for -inf, the best where lower is better, and NaN for the worst in either mode.
    assert math.isnan(saved.metrics["episode_reward_mean"])
    assert saved.metrics["training_iteration"] == own["training_iteration"]


def test_manifest_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    with trial(PPO) as trainable:
        result = trainable.train()
        trainable.save(str(tmp_path))
    manifest = read_manifest(tmp_path)

    assert (manifest.iteration, manifest.trial_id, manifest.metric) == (1, "trial0", "episode_reward_mean")
    assert manifest.score == result["episode_reward_mean"]
    assert manifest.hyperparameters == PPO
    assert set(manifest.versions) == {"ray", "torch", "numpy", "gymnasium"}
    on_disk = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(manifest.files) == on_disk - {"manifest.json"}


@pytest.mark.parametrize(("unit", "interval"), [("iterations", 2), ("seconds", 1e-6), ("seconds", 1e6)])
def test_checkpoints_are_due_at_their_interval(unit: str, interval: float, tmp_path: Path) -> None:
    with trial(PPO, spec(checkpoint_unit=unit, checkpoint_interval=interval)) as trainable:
        due = [trainable.train()["should_checkpoint"] for _ in range(4)]

    assert due == {2: [False, True, False, True], 1e-6: [True] * 4, 1e6: [False] * 4}[interval]


@pytest.fixture(scope="module")
def checkpoint(small_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    quick = {"train_batch_size": 512, "sgd_minibatch_size": 128, "num_sgd_iter": 8, "lr": 3e-3}
    with trial(PPO | quick) as trainable:
        for _ in range(6):
            trainable.train()
        trainable.save(str(folder))
    return folder


def _greedy_returns(module: Any, episodes: int) -> list[float]:
    env = gymnasium.make("CartPole-v1")
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            out = module.forward_inference({"obs": torch.from_numpy(observation[None]).float()})
            observation, reward, terminated, truncated, _ = env.step(int(out["action_dist_inputs"][0].argmax()))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def test_checkpoint_loads_as_an_algorithm_and_goes_on(checkpoint: Path) -> None:
    algorithm = Algorithm.from_checkpoint(str(checkpoint))
    try:
        assert algorithm.config is not None
        assert algorithm.config.lr == 3e-3  # type: ignore[attr-defined]
        assert math.isfinite(algorithm.train()["learners"][DEFAULT_MODULE_ID]["total_loss"])
    finally:
        algorithm.stop()


def test_policy_alone_loads_and_plays_better_than_chance(checkpoint: Path) -> None:
    module = RLModule.from_checkpoint(str(checkpoint / "learner_group" / "learner" / "rl_module" / DEFAULT_MODULE_ID))
    returns = _greedy_returns(module, 20)

    assert len(returns) == 20
    assert np.mean(returns) > 40  # a random policy gets about 22


def test_policy_in_the_algorithm_is_the_policy_alone(checkpoint: Path) -> None:
    alone = RLModule.from_checkpoint(str(checkpoint / "learner_group" / "learner" / "rl_module" / DEFAULT_MODULE_ID))
    algorithm = Algorithm.from_checkpoint(str(checkpoint))
    try:
        assert _greedy_returns(algorithm.get_module(), 3) == _greedy_returns(alone, 3)
    finally:
        algorithm.stop()


def test_trial_tells_whose_checkpoint_it_is(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "trial.json").read_text())
    assert (state["trial_id"], state["own"]["iteration"]) == ("trial0", 6)


def test_rebuilding_stops_the_algorithm_before(tmp_path: Path) -> None:
    with trial(PPO) as trainable:
        first = trainable.algorithm
        stopped: list[bool] = []
        stop = first.stop

        def told() -> None:
            stopped.append(True)
            stop()

        first.stop = told  # type: ignore[method-assign]
        assert trainable.reset(trainable.config)
        assert stopped == [True]
        assert trainable.algorithm is not first
        assert isinstance(trainable, AlgorithmTrainable)

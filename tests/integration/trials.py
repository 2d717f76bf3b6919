"""Trials of tiny networks, driven in this process without Tune, and what can be read from the live ones."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.connectors.learner.general_advantage_estimation import GeneralAdvantageEstimation
from ray.rllib.core import DEFAULT_MODULE_ID

from plato_core.training.metrics import Counters
from plato_core.training.spec import TrialSpec, exploited_config
from plato_core.training.trainable import AlgorithmTrainable

TINY = {"fcnet_hiddens": [16]}
PPO: dict[str, Any] = {
    "lr": 1e-3,
    "clip_param": 0.2,
    "lambda": 0.9,
    "num_sgd_iter": 2,
    "sgd_minibatch_size": 64,
    "train_batch_size": 128,
    "entropy_coeff": 0.01,
    "num_envs_per_env_runner": 2,
    "model_config": TINY,
}
DQN: dict[str, Any] = {
    "lr": 1e-3,
    "train_batch_size": 32,
    "num_steps_sampled_before_learning_starts": 50,
    "min_sample_timesteps_per_iteration": 100,
    "num_envs_per_env_runner": 2,
    "model_config": TINY,
}


def spec(algorithm: str = "PPO", env_name: str = "CartPole-v1", **changes: Any) -> TrialSpec:
    values: dict[str, Any] = {
        "sweep_id": "sweep-1",
        "env_name": env_name,
        "env_config": {},
        "algorithm": algorithm,
        "seed": 1,
        "num_env_runners": 0,
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "metric": "episode_reward_mean",
        "mode": "max",
        "tuned": (),
        "checkpoint_interval": 2,
        "checkpoint_unit": "iterations",
    }
    return TrialSpec(**{**values, **changes})


@contextmanager
def trial(
    hyperparameters: Mapping[str, Any], of: TrialSpec | None = None, *, index: int = 0
) -> Iterator[AlgorithmTrainable]:
    """A trial as Tune's actor would hold it, under an id of its own."""
    config = (of or spec()).trial_config(index, hyperparameters)
    config["__trial_info__"] = SimpleNamespace(
        trial_id=f"trial{index}", trial_name=f"PPO_{index}", trial_resources=None, experiment_name="tune"
    )
    trainable = AlgorithmTrainable(config=config)
    try:
        yield trainable
    finally:
        trainable.stop()


def take_over(trainable: AlgorithmTrainable, checkpoint: Path, hyperparameters: Mapping[str, Any]) -> Counters:
    """An exploit as the scheduler makes it. Returns the trial's counters before it."""
    own = trainable.counters
    trainable.exploit(exploited_config(trainable.config, hyperparameters, own.to_dict()), str(checkpoint))
    return own


def learner(algorithm: Algorithm) -> Any:
    assert algorithm.learner_group is not None
    return algorithm.learner_group._learner


def learning_rates(algorithm: Algorithm) -> list[float]:
    """Of every parameter group of every optimizer that the learner steps."""
    return [rate for rates in optimizer_rates(algorithm).values() for rate in rates]


def optimizer_rates(algorithm: Algorithm) -> dict[str, list[float]]:
    """Optimizer name to the rate of each of its parameter groups."""
    optimizers = learner(algorithm).get_optimizers_for_module(DEFAULT_MODULE_ID)
    assert optimizers
    return {name: [float(group["lr"]) for group in optimizer.param_groups] for name, optimizer in optimizers}


def watch_rates(algorithm: Algorithm) -> list[float]:
    """From now on keeps the rate at which the optimizers make each of their steps."""
    rates: list[float] = []
    for _, optimizer in learner(algorithm).get_optimizers_for_module(DEFAULT_MODULE_ID):
        optimizer.register_step_pre_hook(
            lambda stepping, *_: rates.extend(float(group["lr"]) for group in stepping.param_groups)
        )
    return rates


def gae_lambda(algorithm: Algorithm) -> float:
    connectors = [
        c for c in learner(algorithm)._learner_connector.connectors if isinstance(c, GeneralAdvantageEstimation)
    ]
    assert len(connectors) == 1
    return connectors[0].lambda_


def entropy_coeff(algorithm: Algorithm) -> float:
    scheduler = learner(algorithm).entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID]
    return float(scheduler.get_current_value())


def loss_config(algorithm: Algorithm) -> Any:
    """The config that the learner hands to its loss function."""
    return learner(algorithm).config.get_config_for_module(DEFAULT_MODULE_ID)


def learner_weights(algorithm: Algorithm) -> dict[str, Any]:
    module = learner(algorithm).module[DEFAULT_MODULE_ID]
    return {name: value.detach().clone().numpy() for name, value in module.state_dict().items()}


def sampler_weights(algorithm: Algorithm) -> dict[str, Any]:
    """Of the module that acts in the environment."""
    env_runner: Any = algorithm.env_runner
    return {name: value.detach().clone().numpy() for name, value in env_runner.module.state_dict().items()}


@dataclass
class Used:
    """What one training iteration really used, as the learner counted it.

    Attributes:
        sampled: Environment steps of the train batch.
        minibatch: Steps of one SGD minibatch.
        minibatches: How many of them there were.
        entropy_coeff: In the loss.
    """

    sampled: int
    minibatch: float
    minibatches: float
    entropy_coeff: float

    def minibatches_of(self, epochs: int, num_envs: int, episodes: int) -> tuple[int, int]:
        """The fewest and the most that `epochs` can take: GAE adds one step to each episode and chunk."""
        longest = self.sampled + num_envs + episodes
        return (
            math.ceil(epochs * self.sampled / self.minibatch),
            math.ceil(epochs * longest / self.minibatch),
        )


def watch(trainable: AlgorithmTrainable) -> list[dict[str, Any]]:
    """From now on keeps the RLlib results of the trial's algorithm, which the trial flattens."""
    results: list[dict[str, Any]] = []
    algorithm = trainable.algorithm
    train = algorithm.train

    def kept() -> dict[str, Any]:
        results.append(train())
        return results[-1]

    algorithm.train = kept  # type: ignore[method-assign]
    return results


def used(result: Mapping[str, Any]) -> Used:
    module = result["learners"][DEFAULT_MODULE_ID]
    size = float(module["module_train_batch_size_mean"])
    return Used(
        sampled=int(result["env_runners"]["num_env_steps_sampled"]),
        minibatch=size,
        minibatches=float(module["num_module_steps_trained"]) / size,
        entropy_coeff=float(module["curr_entropy_coeff"]),
    )

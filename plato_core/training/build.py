"""Builds an RLlib algorithm from a trial's config, and keeps its learner on the values it should have."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.registry import get_trainable_cls

from plato_core.training.spec import TrialSpec

# Our canonical names are the ones that users of Plato filter by; RLlib has renamed these since.
RLLIB_NAMES: dict[str, str] = {
    "lambda": "lambda_",
    "num_sgd_iter": "num_epochs",
    "sgd_minibatch_size": "minibatch_size",
    "train_batch_size": "train_batch_size_per_learner",
}


def build_config(spec: TrialSpec, hyperparameters: Mapping[str, Any], seed: int) -> AlgorithmConfig:
    """Returns the algorithm's config: RLlib's defaults, the trial's values, its environment and resources.

    Args:
        spec: What the sweep's trials have in common.
        hyperparameters: Canonical name to value.
        seed: For environments, torch and numpy, through RLlib.
    """
    algorithm = get_trainable_cls(spec.algorithm)
    assert issubclass(algorithm, Algorithm)
    config = algorithm.get_default_config()
    for name, value in hyperparameters.items():
        if name == "model_config":
            config.rl_module(model_config=value)
        else:
            setattr(config, RLLIB_NAMES.get(name, name), value)
    processes = 1 + spec.num_env_runners
    config.environment(spec.env_name, env_config=dict(spec.env_config))
    config.env_runners(num_env_runners=spec.num_env_runners)
    cpus: Any = spec.num_cpus / processes  # a fraction too, which the method's type denies
    config.env_runners(num_cpus_per_env_runner=cpus)
    # RLlib restarts an env runner that fails, and the others go on; by default only after a minute.
    config.fault_tolerance(delay_between_env_runner_restarts_s=1.0)
    config.learners(num_learners=0, num_gpus_per_learner=spec.num_gpus)
    # Its thread would log the machine's load into results that nobody reads, and is waited for, 0.6 s, at each rebuild.
    config.debugging(seed=seed, log_level="ERROR", log_sys_usage=False)
    return config


def build_algorithm(config: AlgorithmConfig, threads: int) -> Algorithm:
    """Builds the algorithm with every random source of this process seeded.

    Args:
        config: From `build_config`.
        threads: torch's threads in this process; more than the trial's CPUs would slow its neighbours.
    """
    import numpy as np
    import torch

    assert config.seed is not None
    torch.set_num_threads(max(1, threads))
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    algorithm = config.build_algo()
    # RLlib makes a folder in ~/ray_results for each algorithm, and writes nothing there unless it is told to.
    with contextlib.suppress(OSError):
        os.rmdir(str(algorithm.logdir))
    # RLlib gives its replay buffers a generator that no seed reaches.
    replay_buffer = getattr(algorithm, "local_replay_buffer", None)
    if replay_buffer is not None:
        replay_buffer.rng = np.random.default_rng(config.seed)
    return algorithm


def epochs_counted(config: AlgorithmConfig) -> int | None:
    """Returns how often the learner counts a trained step; None where all sampled steps are trained on."""
    if config.algo_class is not None and config.algo_class.__name__ == "PPO":
        return None
    return max(1, int(getattr(config, "num_epochs", None) or 1))


def reapply_learning_rates(algorithm: Algorithm) -> None:
    """Sets each optimizer back to the learning rate that the algorithm's own config asks for.

    A restored optimizer state carries the donor's learning rate, and RLlib would keep it for a whole iteration.
    Every other value is read from the config with which the algorithm was built.
    """

    def on_learner(learner: Any, *_: Any) -> None:
        for optimizer, schedule in learner._optimizer_lr_schedules.items():
            learner._set_optimizer_lr(optimizer, lr=schedule.get_current_value())

    assert algorithm.learner_group is not None
    algorithm.learner_group.foreach_learner(on_learner)

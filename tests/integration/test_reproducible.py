"""The same seed gives the same trials until their first exploit; another seed gives others."""

import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import trials
from thorough import SOAKED
from trials import DQN, PPO, spec, trial

from plato_core.config import SweepConfig
from plato_core.sweep.packing import Packing

ITERATIONS = 3
COMPARED = (
    "episode_reward_mean",
    "total_loss",
    "num_env_steps_sampled",
    "num_env_steps_trained",
    "episodes_total",
)


def _run(algorithm: str, seed: int, index: int) -> list[list[Any]]:
    """The first iterations of a trial, in a process of its own with a Ray of its own."""
    command = [sys.executable, "-W", "ignore", __file__, algorithm, str(seed), str(index)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("algorithm", ["PPO", pytest.param("DQN", marks=SOAKED)])
def test_same_seed_gives_the_same_iterations_in_another_process(algorithm: str) -> None:
    first = _run(algorithm, 7, 1)

    assert len(first) == ITERATIONS
    assert all(isinstance(value, float | int) for row in first for value in row)
    assert first == _run(algorithm, 7, 1)  # to the last bit


@pytest.mark.parametrize("algorithm", ["PPO", pytest.param("DQN", marks=SOAKED)])
def test_another_seed_or_trial_gives_other_iterations(algorithm: str, small_ray: None) -> None:
    runs = [_iterations(algorithm, seed, index) for seed, index in ((7, 1), (8, 1), (7, 2), (7, 1))]

    assert runs[0] != runs[1]
    assert runs[0] != runs[2]
    assert runs[0] == runs[3]


def _population(seed: int, size: int = 4) -> list[dict[str, Any]]:
    from plato_core.sweep.population import trial_configs

    config = SweepConfig.model_validate(
        {
            "num_tune_samples": size,
            "seed": seed,
            "max_iterations": 1,
            "hyperparameters": {"train_batch_size": [128, 256], "sgd_minibatch_size": 64},
            "mutations": {
                "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
                "lambda": {"type": "uniform", "low": 0.9, "high": 1.0},
                "num_sgd_iter": {"type": "integer", "low": 1, "high": 30},
            },
        }
    )
    packing = Packing(slots=2, resident=size, cpus_per_trial=2 / size, gpus_per_trial=0.0)
    return [trial["hyperparameters"] for trial in trial_configs(config, "sweep-1", packing)]


def test_same_seed_gives_the_same_population() -> None:
    assert _population(7) == _population(7)
    assert _population(7) != _population(8)
    assert _population(7, size=6)[:4] == _population(7)
    assert len({values["lr"] for values in _population(7)}) == 4


def _iterations(algorithm: str, seed: int, index: int) -> list[list[Any]]:
    values = {"PPO": PPO, "DQN": DQN}[algorithm]
    with trial(values, spec(algorithm, seed=seed), index=index) as trainable:
        results = [trainable.train() for _ in range(ITERATIONS)]
        weight = float(sum(abs(v).sum() for v in trials.learner_weights(trainable.algorithm).values()))
    return [[*(result[name] for name in COMPARED), weight] for result in results]


if __name__ == "__main__":
    from plato_core.sweep.environment import prepare_environment

    prepare_environment(local=True)
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    print(json.dumps(_iterations(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    ray.shutdown()

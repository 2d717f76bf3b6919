"""What a trial takes in memory is measured where it decides how many are resident."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.tune.trainable.trainable
from trials import DQN, PPO, spec

from plato_core.config import SweepConfig
from plato_core.sweep import cluster, footprint
from plato_core.sweep.packing import MEMORY_FRACTION, PROCESS_BYTES, Packing
from plato_core.training.build import build_algorithm, build_config

MB = 2**20
Plan = Callable[..., tuple[Packing, list[str]]]
PACKING = Packing(slots=2, resident=2, cpus_per_trial=1.0, gpus_per_trial=0.0)


@pytest.fixture
def plan(small_ray: None, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Lays two trials over memory for so many processes of 700 MB; returns the packing and what was said."""

    def planned(processes: float, **changes: Any) -> tuple[Packing, list[str]]:
        said: list[str] = []
        monkeypatch.setattr(footprint, "emit", lambda phase: said.append(phase.text))
        monkeypatch.setattr(cluster, "available_memory", lambda: processes * PROCESS_BYTES / MEMORY_FRACTION)
        settings: dict[str, Any] = {
            "num_tune_samples": 2,
            "seed": 1,
            "max_iterations": 1,
            "hyperparameters": PPO,
            "num_cpus": 2,
        }
        settings["mutations"] = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-3}}
        return footprint.plan(SweepConfig.model_validate({**settings, **changes}), "sweep-1"), said

    return planned


def test_nobody_measures_where_memory_is_plenty(plan: Plan) -> None:
    packing, said = plan(8.0)
    assert (packing.resident, said) == (2, [])


def test_trials_that_are_small_are_resident_in_little_memory(plan: Plan) -> None:
    packing, said = plan(1.9)
    assert packing.resident == 2
    assert said[0] == "measuring what a trial takes in memory"
    assert 100 < int(said[1].removeprefix("a trial's process takes ").removesuffix(" MB")) < 700


def test_trials_that_are_large_take_turns(plan: Plan) -> None:
    packing, said = plan(1.9, hyperparameters={**PPO, "model_config": {"fcnet_hiddens": [6000, 6000]}})
    assert packing.resident == 1
    assert said[1].endswith(" MB: room for 1 at once")


def test_trials_that_cannot_start_say_why_themselves(plan: Plan) -> None:
    broken = {"env_name": "odd_envs:Fragile-v0", "env_config": {"folder": "/nowhere", "broken": True}}
    packing, _ = plan(1.9, **broken)
    assert packing.resident in (1, 2)


def test_a_replay_buffer_counts_with_what_it_will_hold(small_ray: None) -> None:
    small = {"replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": 1_000}}
    large = {"replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": 10_000_000}}
    taken = [
        footprint.measured(spec("DQN").trial_config(0, {**DQN, **values}), PACKING) or 0.0 for values in (small, large)
    ]
    assert 100 * MB < taken[0] < 700 * MB
    assert taken[1] - taken[0] == pytest.approx(10_000_000 * (4 * 4 + 64), abs=250 * MB)


def test_an_algorithm_leaves_no_folder_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.tune.trainable.trainable, "DEFAULT_STORAGE_PATH", str(tmp_path))
    algorithm = build_algorithm(build_config(spec(), PPO, 1), 1)
    try:
        assert list(tmp_path.iterdir()) == []
    finally:
        algorithm.stop()

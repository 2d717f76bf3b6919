"""The result of a sweep that never was, for tests of what is said of one."""

from typing import Any

from plato_core.result import SweepResult


def a_result(**other: Any) -> SweepResult:
    """Returns the result, with some fields otherwise."""
    fields = {
        "sweep_id": "20260801-020000-abcdef",
        "parent_run_id": "parent",
        "experiment_name": "pbt_ppo",
        "top_run_id": "abc123",
        "rank_metric": "episode_reward_mean",
        "rank_value": 481.25,
        "checkpoint_iteration": 18,
        "trials": 4,
        "wall_s": 63.0,
        "fit_s": 44.0,
        "training_slot_s": 62.8,
        "slots": 2,
        "sweep_efficiency": 0.714,
        "experiment_id": "1",
        "winner": "trial 2",
    }
    return SweepResult(**{**fields, **other})

"""When the stopper ends trials and sweeps; needs Ray's classes, and no Ray."""

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from plato_core.config import SweepConfig
from plato_core.sweep import stopping
from plato_core.sweep.stopping import STATE, StopState, SweepStopper

LR = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    vars(STATE).update(vars(StopState()))
    yield
    vars(STATE).update(vars(StopState()))


def stopper(**settings: Any) -> SweepStopper:
    return SweepStopper(SweepConfig.model_validate({"mutations": LR, "seed": 1, **settings}))


def result(iteration: int, episode_return: float) -> dict[str, Any]:
    return {"training_iteration": iteration, "episode_reward_mean": episode_return}


def test_the_time_budget_does_not_run_before_training() -> None:
    sweep = stopper(time_budget_s=1e-6)
    assert not sweep.stop_all()
    STATE.began = time.monotonic() - 1
    assert sweep("a", result(1, 10.0))
    assert STATE.reason is not None
    assert "budget" in STATE.reason


def test_the_first_trial_at_the_target_ends_the_others_at_their_next_result() -> None:
    sweep = stopper(stop_reward=475, stop_when="first")
    assert not sweep("a", result(1, 10.0))
    assert not sweep("b", result(1, math.nan))
    assert sweep("b", result(2, 480.0))
    assert sweep("a", result(2, 20.0))
    assert not sweep.stop_all(), "trials that still run are waited for"
    STATE.running = False
    assert sweep.stop_all()


def test_each_trial_ends_by_itself_where_all_are_to_end() -> None:
    sweep = stopper(stop_reward=475, stop_when="all", max_iterations=3)
    assert sweep("b", result(2, 480.0))
    assert not sweep("a", result(2, 20.0))
    assert sweep("a", result(3, 20.0))
    assert STATE.reason is None


def test_only_a_cancelled_sweep_cuts_iterations_short() -> None:
    sweep = stopper(max_iterations=3)
    STATE.request("the time budget is spent")
    STATE.since -= stopping.CANCEL_GRACE_S + 1
    assert not sweep.stop_all()
    STATE.request("it was told to stop", cancelled=True)
    assert not sweep.stop_all(), "the grace counts from the cancel"
    STATE.since -= stopping.CANCEL_GRACE_S + 1
    assert sweep.stop_all()

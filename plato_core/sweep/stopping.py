"""When a trial ends, when the sweep ends, and how both end in order."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from ray import tune

from plato_core.config import SweepConfig

# Seconds that running trials get to finish their iteration and write a last checkpoint: when the sweep is cancelled,
# which is to take 20 s in all, and when it ends by itself.
CANCEL_GRACE_S = 12.0
END_GRACE_S = 600.0

# What ended a trial: its return, its own iterations, the sweep's time, or the sweep's end for another reason.
Why = Literal["target", "iterations", "time", "sweep"]


@dataclass
class StopState:
    """What this process knows of its own end. Outside the stopper, which Tune pickles and copies."""

    reason: str | None = None
    cancelled: bool = False
    since: float = 0.0
    began: float | None = None  # when training might begin
    spent_s: float = 0.0  # of the time budget, by the attempts before this one
    out_of_time: bool = False
    running: bool = True

    def spent_now_s(self) -> float:
        """Returns the seconds for which trials might train, in all attempts of the sweep."""
        return self.spent_s + (0.0 if self.began is None else time.monotonic() - self.began)

    def request(self, reason: str, *, cancelled: bool = False) -> None:
        """Asks for the end of the sweep: each trial stops at its next result, with a checkpoint."""
        if self.reason is None or (cancelled and not self.cancelled):
            self.reason, self.since = reason, time.monotonic()
        self.cancelled = self.cancelled or cancelled


STATE = StopState()


def interrupted() -> bool:
    """Returns whether trials that end now are cut off: the sweep was told to stop, or Tune itself has failed."""
    return STATE.cancelled or sys.exc_info()[0] is not None  # Tune ends its trials while it handles what it failed with


class SweepStopper(tune.Stopper):
    """Ends trials by their own count and return, and the sweep by its budget or its first success.

    Ending the sweep goes through each trial's next result rather than Tune's `stop_all`, which drops what trials
    are doing: no last checkpoint and no end callback. `stop_all` follows once none runs, or after a time of grace.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._stop_reward = config.stop_reward
        self._first = config.stop_when == "first"
        self._max_iterations = config.max_iterations
        self._budget_s = config.time_budget_s

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial ends with this result."""
        reached = self._stop_reward is not None and result["episode_reward_mean"] >= self._stop_reward
        if reached and self._first:
            STATE.request(f"{result['episode_reward_mean']:.1f} reached the target of {self._stop_reward:g}")
        return reached or self._out_of_iterations(result) or self._ending()

    def why(self, result: dict[str, Any]) -> Why:
        """Returns what ended a trial of which this is the last result."""
        return self.due(result) or ("time" if STATE.out_of_time else "sweep")

    def due(self, result: dict[str, Any]) -> Why | None:
        """Returns why a trial ends with this result by itself; None if it does not."""
        value = result.get("episode_reward_mean")
        if self._stop_reward is not None and (math.nan if value is None else value) >= self._stop_reward:
            return "target"
        return "iterations" if self._out_of_iterations(result) else None

    def _out_of_iterations(self, result: dict[str, Any]) -> bool:
        return self._max_iterations is not None and result.get("training_iteration", 0) >= self._max_iterations

    def stop_all(self) -> bool:
        """Whether Tune may end now without waiting for anything."""
        if not self._ending():
            return False
        grace_s = CANCEL_GRACE_S if STATE.cancelled else END_GRACE_S
        return not STATE.running or time.monotonic() - STATE.since > grace_s

    def _ending(self) -> bool:
        if STATE.reason is None and self._budget_s is not None and STATE.spent_now_s() > self._budget_s:
            STATE.out_of_time = True
            STATE.request(f"the time budget of {self._budget_s:g} s is spent")
        return STATE.reason is not None

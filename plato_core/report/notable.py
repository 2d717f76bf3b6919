"""The lines worth logging while a sweep runs, and what makes a new best worth one."""

import math
from collections.abc import Iterable, Sequence

from plato_core.report.facts import RETURN_METRIC, Best, SweepFacts, TrialRow
from plato_core.report.text import counted, last_line, measure, number
from plato_core.sweep.events import Exploited, NodeChanged, Result, TrialEnded, TrialRestarted

_STEP = 0.10


class BestSoFar:
    """Keeps the best value of the metric and the best return, and says which improvements deserve a line.

    The first value is where things start from, not an achievement. After it a new best is announced once it
    has come on from the last one announced by 10 % of the way to the target, or without a target by 10 % of
    the range of values seen. That the target is reached is always said, once.
    """

    def __init__(self, facts: SweepFacts) -> None:
        self.value: Best | None = None
        self.best_return: float | None = None
        self.first_return: float | None = None
        self._facts = facts
        self._goal = facts.stop_reward if facts.metric == RETURN_METRIC else None
        self._announced: float | None = None
        self._lowest = math.inf
        self._highest = -math.inf

    def take(self, row: TrialRow, result: Result) -> str | None:
        """Take in a trial's result and return the line that it deserves, if any."""
        reached = self._take_return(result.episode_return)
        notable = self._take_value(row, result)
        if reached:
            value, goal = measure(result.episode_return), number(self._facts.stop_reward)
            return f"trial {row.index} reaches the target: {value} of {goal} at iteration {result.iteration}"
        if notable:
            name = "" if self._facts.metric == RETURN_METRIC else f"{self._facts.metric} "
            goal = "" if self._goal is None else f" of {number(self._goal)}"
            place = f"(trial {row.index}, iteration {result.iteration})"
            return f"new best {name}{measure(result.metric_value)}{goal} {place}"
        return None

    def _take_return(self, value: float | None) -> bool:
        """Keep the best return, and say whether `value` is the first to reach the target."""
        if value is None:
            return False
        if self.first_return is None:
            self.first_return = value
        before, self.best_return = self.best_return, largest(self.best_return, value)
        goal = self._facts.stop_reward
        return goal is not None and value >= goal and (before is None or before < goal)

    def _take_value(self, row: TrialRow, result: Result) -> bool:
        """Keep the best value of the metric, and say whether it is far enough from the last one announced."""
        value = result.metric_value
        if value is None:
            return False
        self._lowest, self._highest = min(self._lowest, value), max(self._highest, value)
        if self.value is not None:
            known = self.value.value
            if not (value > known if self._facts.mode == "max" else value < known):
                return False
        self.value = Best(row.index, row.trial or "", result.iteration, value)
        if self._announced is None:
            self._announced = value
            return False
        if self._goal is not None and self.first_return is not None:
            step = _STEP * abs(self._goal - self.first_return)
        else:
            step = _STEP * (self._highest - self._lowest)
        if abs(value - self._announced) < step:
            return False
        self._announced = value
        return True


def exploit_line(event: Exploited, row: TrialRow, donor: TrialRow, tuned: Sequence[str]) -> str:
    """Return who copied whom and what became of the tuned values: `lr 0.001 -> 0.0012, lambda 0.9 (kept)`."""
    changes = []
    for name in [name for name in tuned if name in event.new] or list(event.new):
        old, new = event.old.get(name), event.new[name]
        changes.append(f"{name} {number(new)} (kept)" if old == new else f"{name} {number(old)} -> {number(new)}")
    line = f"trial {row.index} exploits trial {donor.index} at iteration {event.iteration}"
    return f"{line}: {', '.join(changes)}" if changes else line


def past_line(rows: Iterable[TrialRow]) -> str | None:
    """Return how far a sweep that goes on had come; None if no trial has reported yet."""
    reached = ", ".join(
        f"trial {row.index} at iteration {row.iteration}" for row in sorted(rows, key=lambda r: r.index)
    )
    return f"going on: {reached}" if reached else None


def restart_line(event: TrialRestarted, row: TrialRow) -> str:
    """Return what a trial failed with, and from where it starts again for which time."""
    place = f"from iteration {event.iteration}" if event.iteration else "from its beginning"
    if event.lost_node:
        return f"trial {row.index} has lost its node and goes on {place}"
    return f"trial {row.index} failed: {last_line(event.error)}; restart {row.restarts} {place}"


def node_line(event: NodeChanged) -> str:
    """Return what became of a Ray node, and of the trials on it."""
    match event.change:
        case "lost":
            goes_on = ["no trial was on it", "its trial goes on from its last checkpoint"]
            goes_on += [f"its {event.trials} trials go on from their last checkpoints"]
            left = f"{event.nodes} of {event.most} left"
            return f"Ray node {event.address} is lost: {left}; {goes_on[min(event.trials, 2)]}"
        case "joined":
            return f"Ray node {event.address} has joined: {counted(event.nodes, 'node')} now"
        case "refused":
            return f"Ray node {event.address} has joined and is not used: {last_line(event.why or 'unknown')}"


def failure_line(row: TrialRow) -> str:
    """Return what a trial failed with for good: `trial 1 failed at iteration 3 after 2 restarts: ValueError: no`."""
    again = f" after {counted(row.restarts, 'restart')}" if row.restarts else ""
    return f"trial {row.index} failed at iteration {row.iteration}{again}: {last_line(row.error or '')}"


def end_line(event: TrialEnded, row: TrialRow) -> str:
    """Return how a trial ended."""
    if event.status == "FAILED":
        return failure_line(row)
    verb = "finished" if event.status == "FINISHED" else "stopped"
    known = "" if row.episode_return is None else f", return {measure(row.episode_return)}"
    return f"trial {row.index} {verb} at iteration {row.iteration}{known}"


def largest(old: float | None, new: float | None) -> float | None:
    """Return the larger of two values, either of which may be unknown."""
    return new if old is None or (new is not None and new > old) else old

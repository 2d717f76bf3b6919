"""What progress is made of: the sweep's facts, a row for each trial, the best value so far; all of it in a snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plato_core.report.curves import Curve
from plato_core.sweep.events import SweepEnded, TrackingState

RETURN_METRIC = "episode_reward_mean"
TrialState = Literal["pending", "running", "waiting", "finished", "failed", "stopped"]
END_STATES: dict[str, TrialState] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


@dataclass(frozen=True)
class SweepFacts:
    """What the config says of the sweep, as far as its progress is concerned.

    Attributes:
        population: Number of trials.
        metric: What the scheduler ranks by.
        mode: Whether more or less of it is better.
        stop_reward: The `episode_reward_mean` at which a trial is done.
        stop_when: Whether the first trial to reach it ends the sweep, or each just itself.
        max_iterations: Bound on each trial's own iterations.
        time_budget_s: Bound on the sweep's seconds.
        tuned: Names of the tuned hyperparameters, in the order to show them.
    """

    population: int
    metric: str = RETURN_METRIC
    mode: Literal["max", "min"] = "max"
    stop_reward: float | None = None
    stop_when: Literal["first", "all"] = "first"
    max_iterations: int | None = None
    time_budget_s: float | None = None
    tuned: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialRow:
    """One trial as a leaderboard shows it.

    Attributes:
        trial: Tune's id; None for a trial that has not started.
        index: The number by which people know it, from 0.
        iteration: Its own count.
        episode_return: Its latest known return.
        best_return: Its highest return.
        metric_value: Its latest known value of the sweep's metric, by which the leaderboard is ordered.
        tuned: The tuned hyperparameters' current values.
        generation: How often it has exploited another trial.
        env_steps: Environment steps that it has sampled.
        restarts: How often it has failed and started again, lost nodes aside.
        error: What it failed with in the end, in one line.
    """

    trial: str | None
    index: int
    iteration: int = 0
    episode_return: float | None = None
    best_return: float | None = None
    metric_value: float | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict)
    state: TrialState = "pending"
    generation: int = 0
    env_steps: int = 0
    restarts: int = 0
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether the trial has ended, one way or another."""
        return self.state in END_STATES.values()


@dataclass(frozen=True)
class Best:
    """The best value of the sweep's metric so far, and the trial and iteration that had it."""

    index: int
    trial: str
    iteration: int
    value: float


@dataclass(frozen=True)
class Snapshot:
    """Everything that is known of a sweep at one moment, for whoever shows it.

    Attributes:
        headline: The state in one line.
        fraction: How far the sweep is, in [0, 1].
        rows: The leaderboard, best first.
        best: The best value of the sweep's metric so far.
        curves: The learning curves, in the order of the trials' numbers.
        elapsed_s: Seconds that it has taken.
        tracking: What the tracking writer said last.
        ended: The sweep's last word; None while it runs.
    """

    facts: SweepFacts
    headline: str
    fraction: float
    rows: tuple[TrialRow, ...]
    best: Best | None
    curves: tuple[Curve, ...]
    elapsed_s: float
    tracking: TrackingState | None
    ended: SweepEnded | None

    @property
    def iteration(self) -> int:
        """The furthest trial's own iteration."""
        return max((row.iteration for row in self.rows), default=0)

    @property
    def exploits(self) -> int:
        """How often a trial has taken over another's policy."""
        return sum(row.generation for row in self.rows)

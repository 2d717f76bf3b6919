"""What progress is made of: the sweep's facts, a row for each trial, the best value so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RETURN_METRIC = "episode_reward_mean"
TrialState = Literal["pending", "running", "exploiting", "finished", "failed", "stopped"]
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

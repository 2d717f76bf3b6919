"""The metric names that users filter, chart and compare by, and how each is read from an RLlib result.

RLlib nests its results and renames them between releases; these names stay. Sources as of ray 2.60, new API stack.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

CONTRACT_METRICS: tuple[str, ...] = (
    "agent_timesteps_total", "done", "episode_len_mean", "episode_reward_max", "episode_reward_mean",
    "episode_reward_min", "episodes_this_iter", "episodes_total", "iterations_since_restore",
    "num_agent_steps_sampled", "num_agent_steps_trained", "num_env_steps_sampled",
    "num_env_steps_sampled_this_iter", "num_env_steps_trained", "num_env_steps_trained_this_iter",
    "num_faulty_episodes", "num_healthy_workers", "num_in_flight_async_reqs", "num_remote_worker_restarts",
    "num_steps_trained_this_iter", "pid", "time_since_restore", "time_this_iter_s", "time_total_s",
    "timestamp", "timesteps_since_restore", "timesteps_total", "training_iteration", "warmup_time",
)  # fmt: skip
LEARNER_METRICS: tuple[str, ...] = ("policy_loss", "vf_loss", "total_loss", "entropy", "kl")
# Of those, what an algorithm has where it has not all.
LEARNER_METRICS_OF: dict[str, tuple[str, ...]] = {
    "DQN": ("total_loss",),
    "SAC": ("policy_loss", "total_loss"),
    "IMPALA": ("policy_loss", "vf_loss", "total_loss", "entropy"),
}
EPISODE_METRICS: tuple[str, ...] = (
    "episode_reward_mean", "episode_reward_max", "episode_reward_min", "episode_len_mean",
)  # fmt: skip
HP_PREFIX = "hp/"
# AML documents 50 metric names a run.
MAX_METRIC_NAMES = 50
MAX_TUNED_VALUES = MAX_METRIC_NAMES - len(CONTRACT_METRICS) - len(LEARNER_METRICS)

# First the name that all but IMPALA use; IMPALA's own `vf_loss` is a sum.
_LEARNER_SOURCES: dict[str, tuple[str, ...]] = {
    "kl": ("mean_kl_loss",),
    "policy_loss": ("policy_loss", "mean_pi_loss"),
    "vf_loss": ("mean_vf_loss", "vf_loss"),
}


@dataclass(frozen=True)
class Counters:
    """What one trial has spent, over its whole life: through exploits, pauses and resumes."""

    iteration: int = 0
    time_total_s: float = 0.0
    env_steps: int = 0
    agent_steps: int = 0
    env_steps_trained: int = 0
    agent_steps_trained: int = 0
    episodes: int = 0

    def to_dict(self) -> dict[str, int | float]:
        """Returns the counters as they are kept in a checkpoint and in a trial's config."""
        return asdict(self)

    def after(self, spent: Iteration) -> Counters:
        """Returns the counters one iteration on."""
        return Counters(
            iteration=self.iteration + 1,
            time_total_s=self.time_total_s + spent.time_s,
            env_steps=self.env_steps + spent.env_steps,
            agent_steps=self.agent_steps + spent.agent_steps,
            env_steps_trained=self.env_steps_trained + spent.env_steps_trained,
            agent_steps_trained=self.agent_steps_trained + spent.agent_steps_trained,
            episodes=self.episodes + spent.episodes,
        )


@dataclass(frozen=True)
class Episodes:
    """The episodes that ended in one iteration: how many, and what RLlib says of them."""

    count: int
    return_mean: float
    return_max: float
    return_min: float
    length_mean: float


class RecentEpisodes:
    """The last episodes of a policy, over which the `episode_*` metrics are taken.

    RLlib 2.60 reports the episodes of one iteration alone, although its setting `metrics_num_episodes_for_smoothing`
    (100) says otherwise: with few episodes an iteration, a single lucky one passes for a solved environment. At an
    exploit the donor's episodes come along with its policy.

    Args:
        size: Episodes to look back on; whole iterations are kept, so it may be a few more.
        episodes: Iterations to begin with, oldest first.
    """

    def __init__(self, size: int, episodes: Sequence[Episodes] = ()) -> None:
        self._size = size
        self._episodes = deque(episodes)

    def add(self, result: Mapping[str, Any]) -> None:
        """Adds the episodes that ended in an iteration, if any did."""
        runners = result.get("env_runners") or {}
        ended = Episodes(
            count=_integer(runners.get("num_episodes")),
            return_mean=_number(runners.get("episode_return_mean")),
            return_max=_number(runners.get("episode_return_max")),
            return_min=_number(runners.get("episode_return_min")),
            length_mean=_number(runners.get("episode_len_mean")),
        )
        if ended.count == 0 or not math.isfinite(ended.return_mean):
            return
        self._episodes.append(ended)
        while sum(e.count for e in self._episodes) - self._episodes[0].count >= self._size:
            self._episodes.popleft()

    def metrics(self) -> dict[str, float]:
        """Returns the four `episode_*` metrics, NaN while no episode has ended."""
        count = sum(e.count for e in self._episodes)
        if count == 0:
            return dict.fromkeys(EPISODE_METRICS, math.nan)
        return {
            "episode_reward_mean": sum(e.return_mean * e.count for e in self._episodes) / count,
            "episode_reward_max": max(e.return_max for e in self._episodes),
            "episode_reward_min": min(e.return_min for e in self._episodes),
            "episode_len_mean": sum(e.length_mean * e.count for e in self._episodes) / count,
        }

    def to_list(self) -> list[dict[str, float | int]]:
        """Returns what a checkpoint keeps."""
        return [asdict(e) for e in self._episodes]

    @classmethod
    def of(cls, size: int, episodes: Sequence[Mapping[str, Any]]) -> RecentEpisodes:
        """Reads what a checkpoint kept."""
        return cls(size, [Episodes(**e) for e in episodes])


@dataclass(frozen=True)
class Iteration:
    """What one training iteration spent: seconds, environment and agent steps, finished episodes."""

    time_s: float
    env_steps: int
    agent_steps: int
    env_steps_trained: int
    agent_steps_trained: int
    episodes: int


def read_iteration(result: Mapping[str, Any], time_s: float, epochs_counted: int | None) -> Iteration:
    """Reads from an RLlib result what its iteration spent.

    Args:
        result: What `Algorithm.train()` returned.
        time_s: Wall seconds of the iteration.
        epochs_counted: None where each sampled batch is trained on as a whole (PPO): then the steps of the
            train batches are the sampled ones. Else by how much the learner's own counter is too large,
            since it counts a step once an epoch.
    """
    runners = result.get("env_runners") or {}
    env_steps = _integer(runners.get("num_env_steps_sampled"))
    agent_steps = sum(_integer(v) for v in (runners.get("num_agent_steps_sampled") or {}).values())
    if epochs_counted is None:
        env_trained, agent_trained = env_steps, agent_steps
    else:
        learners = result.get("learners") or {}
        modules = [v for k, v in learners.items() if k != "__all_modules__" and isinstance(v, Mapping)]
        agent_trained = sum(_integer(m.get("num_module_steps_trained")) for m in modules) // epochs_counted
        all_modules = learners.get("__all_modules__") or {}
        env_trained = _integer(all_modules.get("num_env_steps_trained")) // epochs_counted
    return Iteration(
        time_s=time_s,
        env_steps=env_steps,
        agent_steps=agent_steps,
        env_steps_trained=env_trained,
        agent_steps_trained=agent_trained,
        episodes=_integer(runners.get("num_episodes")),
    )


def flat_metrics(
    result: Mapping[str, Any],
    spent: Iteration,
    totals: Counters,
    *,
    timesteps_since_restore: int,
    warmup_s: float,
) -> dict[str, float | int]:
    """Returns an RLlib result under the stable names.

    Tune adds `done`, `pid`, `timestamp`, `time_since_restore` and `iterations_since_restore`, `RecentEpisodes` the
    `episode_*` ones.

    Args:
        result: What `Algorithm.train()` returned.
        spent: What this iteration spent.
        totals: The trial's counters after it.
        timesteps_since_restore: Environment steps since the last exploit or restore.
        warmup_s: Seconds from set-up to the first step.

    Returns:
        One number a name; a learner's loss is absent where the algorithm has none.
    """
    runners = result.get("env_runners") or {}
    faults = result.get("fault_tolerance") or {}
    group = result.get("env_runner_group") or {}
    metrics: dict[str, float | int] = {
        "training_iteration": totals.iteration,
        "time_total_s": totals.time_total_s,
        "time_this_iter_s": spent.time_s,
        "timesteps_total": totals.env_steps,
        "agent_timesteps_total": totals.agent_steps,
        "num_env_steps_sampled": totals.env_steps,
        "num_env_steps_sampled_this_iter": spent.env_steps,
        "num_agent_steps_sampled": totals.agent_steps,
        "num_env_steps_trained": totals.env_steps_trained,
        "num_env_steps_trained_this_iter": spent.env_steps_trained,
        "num_steps_trained_this_iter": spent.env_steps_trained,
        "num_agent_steps_trained": totals.agent_steps_trained,
        "episodes_this_iter": spent.episodes,
        "episodes_total": totals.episodes,
        "timesteps_since_restore": timesteps_since_restore,
        "num_faulty_episodes": _integer(runners.get("num_env_step_failures_lifetime")),
        "num_healthy_workers": _integer(faults.get("num_healthy_workers")),
        "num_remote_worker_restarts": _integer(faults.get("num_remote_worker_restarts")),
        "num_in_flight_async_reqs": _integer(group.get("actor_manager_num_outstanding_async_reqs")),
        "warmup_time": warmup_s,
    }
    metrics.update(_learner_metrics(result))
    return metrics


def restarted(counters: Mapping[str, Any] | None) -> Counters:
    """Reads counters kept in a checkpoint or a config; None starts at zero."""
    return replace(Counters(), **dict(counters or {}))


def counters_of(metrics: Mapping[str, Any]) -> Counters:
    """Reads a trial's counters back from a result that it reported."""
    return Counters(
        iteration=int(metrics["training_iteration"]),
        time_total_s=float(metrics["time_total_s"]),
        env_steps=int(metrics["num_env_steps_sampled"]),
        agent_steps=int(metrics["num_agent_steps_sampled"]),
        env_steps_trained=int(metrics["num_env_steps_trained"]),
        agent_steps_trained=int(metrics["num_agent_steps_trained"]),
        episodes=int(metrics["episodes_total"]),
    )


def _learner_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    learners = result.get("learners") or {}
    modules = [v for k, v in learners.items() if k != "__all_modules__" and isinstance(v, Mapping)]
    metrics: dict[str, float] = {}
    for name in LEARNER_METRICS:
        sources = _LEARNER_SOURCES.get(name, (name,))
        values = [_number(next((m[s] for s in sources if s in m), None)) for m in modules]
        known = [value for value in values if math.isfinite(value)]
        if known:
            metrics[name] = sum(known) / len(known)
    return metrics


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _integer(value: object) -> int:
    number = _number(value)
    return int(number) if math.isfinite(number) else 0

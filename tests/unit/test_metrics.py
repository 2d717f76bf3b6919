"""RLlib results under the names that users chart by."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plato_core.training.metrics import (
    CONTRACT_METRICS,
    EPISODE_METRICS,
    HP_PREFIX,
    LEARNER_METRICS,
    MAX_METRIC_NAMES,
    MAX_TUNED_VALUES,
    Counters,
    Episodes,
    RecentEpisodes,
    counters_of,
    flat_metrics,
    read_iteration,
    restarted,
)

# Tune's own, beside what the trainable reports.
FROM_TUNE = {"done", "pid", "timestamp", "time_since_restore", "iterations_since_restore"}

# As ray 2.60 reports them, shortened: PPO after one of its iterations, and a replaying algorithm.
PPO_RESULT: dict[str, Any] = {
    "env_runners": {
        "num_env_steps_sampled": 128.0,
        "num_agent_steps_sampled": {"default_agent": 128.0},
        "num_episodes": 4.0,
        "episode_return_mean": 26.5,
        "episode_return_max": 65.0,
        "episode_return_min": 11.0,
        "episode_len_mean": 27.0,
    },
    "learners": {
        "__all_modules__": {"num_env_steps_trained": 670.0, "num_module_steps_trained": 320.0},
        "default_policy": {
            "num_module_steps_trained": 320.0,
            "policy_loss": 0.5,
            "vf_loss": 9.0,
            "total_loss": 9.5,
            "entropy": 0.68,
            "mean_kl_loss": 0.01,
            "curr_kl_coeff": 0.2,
        },
    },
    "fault_tolerance": {"num_healthy_workers": 2, "num_remote_worker_restarts": 1},
    "env_runner_group": {"actor_manager_num_outstanding_async_reqs": 3},
}
DQN_RESULT: dict[str, Any] = {
    "env_runners": {"num_env_steps_sampled": 100, "num_agent_steps_sampled": {"default_agent": 100}},
    "learners": {
        "__all_modules__": {"num_env_steps_trained": 1568},
        "default_policy": {"num_module_steps_trained": 1568, "total_loss": 0.02, "qf_loss": 0.02},
    },
}


def _metrics(result: dict[str, Any], epochs_counted: int | None = None) -> dict[str, float | int]:
    spent = read_iteration(result, 0.25, epochs_counted)
    return flat_metrics(result, spent, Counters().after(spent), timesteps_since_restore=7, warmup_s=1.5)


def test_names_are_the_twenty_nine_of_the_contract() -> None:
    assert len(CONTRACT_METRICS) == len(set(CONTRACT_METRICS)) == 29
    assert len(CONTRACT_METRICS) + len(LEARNER_METRICS) + MAX_TUNED_VALUES == MAX_METRIC_NAMES == 50
    assert not set(CONTRACT_METRICS) & set(LEARNER_METRICS)
    assert not any(name.startswith(HP_PREFIX) for name in CONTRACT_METRICS)


@pytest.mark.parametrize("result", [PPO_RESULT, DQN_RESULT, {}], ids=["PPO", "DQN", "empty"])
def test_every_name_has_a_source_whatever_rllib_leaves_out(result: dict[str, Any]) -> None:
    metrics = _metrics(result) | RecentEpisodes(100).metrics()

    assert set(metrics) - set(LEARNER_METRICS) == set(CONTRACT_METRICS) - FROM_TUNE


def test_steps_trained_of_whole_batches_are_the_steps_sampled() -> None:
    metrics = _metrics(PPO_RESULT)

    for name in ("num_env_steps_sampled", "num_env_steps_trained", "num_env_steps_trained_this_iter"):
        assert metrics[name] == 128, name
    for name in ("num_agent_steps_sampled", "num_agent_steps_trained", "num_steps_trained_this_iter"):
        assert metrics[name] == 128, name
    for name in ("timesteps_total", "agent_timesteps_total", "num_env_steps_sampled_this_iter"):
        assert metrics[name] == 128, name


def test_steps_trained_of_replayed_batches_are_the_learners() -> None:
    metrics = _metrics(DQN_RESULT, epochs_counted=1)

    assert (metrics["num_env_steps_sampled"], metrics["num_env_steps_trained"]) == (100, 1568)
    assert metrics["num_agent_steps_trained"] == 1568


def test_epochs_do_not_count_as_trained_steps() -> None:
    assert read_iteration(DQN_RESULT, 0.25, 4).env_steps_trained == 392


def test_steps_of_several_agents_and_modules_are_added_up() -> None:
    result = {
        "env_runners": {"num_env_steps_sampled": 10, "num_agent_steps_sampled": {"a": 10, "b": 6}},
        "learners": {
            "__all_modules__": {"num_env_steps_trained": 10},
            "p": {"num_module_steps_trained": 10, "total_loss": 1.0},
            "q": {"num_module_steps_trained": 6, "total_loss": 3.0},
        },
    }
    spent = read_iteration(result, 0.25, 1)

    assert (spent.agent_steps, spent.agent_steps_trained) == (16, 16)
    assert _metrics(result, 1)["total_loss"] == 2.0


def test_other_sources_are_where_rllib_keeps_them() -> None:
    metrics = _metrics(PPO_RESULT)

    assert metrics["num_healthy_workers"] == 2
    assert metrics["num_remote_worker_restarts"] == 1
    assert metrics["num_in_flight_async_reqs"] == 3
    assert metrics["episodes_this_iter"] == metrics["episodes_total"] == 4
    assert metrics["timesteps_since_restore"] == 7
    assert metrics["warmup_time"] == 1.5
    assert metrics["time_this_iter_s"] == metrics["time_total_s"] == 0.25


def test_learners_losses_are_there_as_far_as_the_algorithm_has_them() -> None:
    metrics = _metrics(PPO_RESULT)
    assert {name: metrics[name] for name in LEARNER_METRICS} == {
        "policy_loss": 0.5,
        "vf_loss": 9.0,
        "total_loss": 9.5,
        "entropy": 0.68,
        "kl": 0.01,
    }
    assert set(_metrics(DQN_RESULT)) & set(LEARNER_METRICS) == {"total_loss"}


def test_loss_that_is_no_number_is_left_out() -> None:
    result = {"learners": {"default_policy": {"total_loss": math.nan, "policy_loss": "n/a", "vf_loss": 1}}}
    assert set(_metrics(result)) & set(LEARNER_METRICS) == {"vf_loss"}


def test_counts_that_are_unknown_are_zero() -> None:
    result = {"env_runners": {"num_env_steps_sampled": math.nan, "num_episodes": None}}
    metrics = _metrics(result)
    assert metrics["num_env_steps_sampled"] == metrics["episodes_total"] == 0


def _ended(count: int, mean: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {
        "env_runners": {
            "num_episodes": count,
            "episode_return_mean": mean,
            "episode_return_min": mean if low is None else low,
            "episode_return_max": mean if high is None else high,
            "episode_len_mean": 2 * mean,
        }
    }


def test_return_is_unknown_until_an_episode_has_ended() -> None:
    recent = RecentEpisodes(100)
    recent.add({"env_runners": {"num_episodes": 0, "episode_return_mean": math.nan}})
    recent.add({})
    assert set(recent.metrics()) == set(EPISODE_METRICS)
    assert all(math.isnan(value) for value in recent.metrics().values())

    recent.add(_ended(1, 20.0))
    assert recent.metrics()["episode_reward_mean"] == 20.0


def test_mean_is_over_episodes_and_not_over_iterations() -> None:
    recent = RecentEpisodes(100)
    recent.add(_ended(1, 100.0))
    recent.add(_ended(9, 10.0, low=5.0, high=15.0))

    assert recent.metrics() == {
        "episode_reward_mean": 19.0,
        "episode_reward_max": 100.0,
        "episode_reward_min": 5.0,
        "episode_len_mean": 38.0,
    }


def test_iteration_without_an_ended_episode_keeps_the_return() -> None:
    recent = RecentEpisodes(100)
    recent.add(_ended(3, 10.0))
    recent.add(_ended(0, math.nan))
    assert recent.metrics()["episode_reward_mean"] == 10.0


def test_old_episodes_are_forgotten_whole_iterations_at_a_time() -> None:
    recent = RecentEpisodes(10)
    recent.add(_ended(6, 0.0))
    recent.add(_ended(6, 10.0))
    assert recent.metrics()["episode_reward_mean"] == 5.0  # 6 are too few, so all 12 count
    recent.add(_ended(4, 10.0))
    assert recent.metrics()["episode_reward_mean"] == 10.0


def test_last_iteration_counts_however_many_episodes_it_had() -> None:
    recent = RecentEpisodes(10)
    recent.add(_ended(3, 0.0))
    recent.add(_ended(50, 10.0))
    assert recent.metrics()["episode_reward_mean"] == 10.0


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(-500, 500)), max_size=12), st.integers(1, 60))
def test_return_is_the_mean_over_at_least_the_last_episodes(iterations: list[tuple[int, float]], size: int) -> None:
    recent = RecentEpisodes(size)
    for count, mean in iterations:
        recent.add(_ended(count, mean))
    wanted: list[tuple[int, float]] = []
    for count, mean in reversed([(count, mean) for count, mean in iterations if count]):
        if sum(c for c, _ in wanted) >= size:
            break
        wanted.append((count, mean))
    total = sum(count for count, _ in wanted)
    found = recent.metrics()["episode_reward_mean"]

    if not total:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sum(c * m for c, m in wanted) / total, abs=1e-9)


def test_recent_episodes_come_back_from_a_checkpoint() -> None:
    recent = RecentEpisodes(10)
    recent.add(_ended(6, 1.0))
    recent.add(_ended(6, 3.0))
    again = RecentEpisodes.of(10, recent.to_list())
    for each in (recent, again):
        each.add(_ended(5, 5.0))

    assert again.metrics() == recent.metrics()
    assert again.to_list() == recent.to_list()
    assert Episodes(**again.to_list()[0]).count == 6  # type: ignore[arg-type]


def test_counters_add_up_and_come_back() -> None:
    spent = read_iteration(PPO_RESULT, 0.5, None)
    counters = Counters().after(spent).after(spent)

    assert (counters.iteration, counters.env_steps, counters.episodes) == (2, 256, 8)
    assert counters.time_total_s == 1.0
    assert restarted(counters.to_dict()) == counters
    assert restarted(None) == Counters()
    metrics = flat_metrics(PPO_RESULT, spent, counters, timesteps_since_restore=0, warmup_s=0.0)
    assert counters_of(metrics) == counters

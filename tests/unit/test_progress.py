import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plato_core.report.progress import SweepFacts, SweepProgress
from plato_core.report.text import count, duration, hide_passwords, measure, number, plain
from plato_core.sweep.events import (
    Event,
    Exploited,
    Failed,
    NodeChanged,
    Notice,
    Past,
    Phase,
    Result,
    Stopping,
    SweepEnded,
    TrackingState,
    TrialEnded,
    TrialRestarted,
    TrialStarted,
    TrialWaits,
)

CARTPOLE = SweepFacts(population=3, stop_reward=475.0, max_iterations=40, time_budget_s=300, tuned=("lr", "lambda"))


def started(index: int, **hyperparameters: Any) -> TrialStarted:
    return TrialStarted(trial=f"c0ffee_{index:05d}", index=index, hyperparameters=hyperparameters)


def result(index: int, iteration: int, value: float | None, **more: Any) -> Result:
    fields = {"episode_return": value, "metric_value": value, **more}
    return Result(trial=f"c0ffee_{index:05d}", iteration=iteration, **fields)


def ended(index: int, status: Any = "FINISHED", **more: Any) -> TrialEnded:
    return TrialEnded(trial=f"c0ffee_{index:05d}", status=status, **more)


def exploited(index: int, donor: int, iteration: int, **more: Any) -> Exploited:
    return Exploited(
        trial=f"c0ffee_{index:05d}",
        donor=f"c0ffee_{donor:05d}",
        iteration=iteration,
        donor_iteration=9,
        **more,
    )


OVER = SweepEnded(outcome="finished", fit_s=30, training_slot_s=40, slots=2, trials=3)


def after(*events: Event, facts: SweepFacts = CARTPOLE) -> SweepProgress:
    progress = SweepProgress(facts)
    for event in events:
        progress.apply(event, 0.0)
    return progress


def lines(*events: Event, facts: SweepFacts = CARTPOLE) -> list[str]:
    progress, said = SweepProgress(facts), []
    for event in events:
        progress.apply(event, 0.0)
        if (line := progress.notable(event)) is not None:
            said.append(line)
    return said


def indices(progress: SweepProgress) -> list[int]:
    return [row.index for row in progress.leaderboard()]


def test_what_a_stopped_job_could_not_send_is_told_at_its_end() -> None:
    stopped = OVER.model_copy(update={"outcome": "stopped"})
    said = lines(started(0), TrackingState(pending=1), stopped)
    assert said[-1].startswith("not in the tracking store yet: 1 entry, kept with the sweep's files")
    assert lines(started(0), TrackingState(pending=1), stopped.model_copy(update={"spool": "/here"})) == []


def test_the_leaderboard_is_best_first_with_unknown_and_pending_trials_last() -> None:
    facts = SweepFacts(population=4)
    progress = after(started(0), started(1), started(2), result(1, 1, 10.0), result(2, 1, 30.0), facts=facts)
    assert indices(progress) == [2, 1, 0, 3]
    assert [row.state for row in progress.leaderboard()] == ["running", "running", "running", "pending"]


def test_where_less_is_better_the_least_comes_first() -> None:
    facts = SweepFacts(population=3, metric="kl", mode="min")
    progress = after(result(0, 1, 0.3), result(1, 1, None), result(2, 1, 0.1), facts=facts)
    assert indices(progress) == [2, 0, 1]
    best = progress.best()
    assert best is not None
    assert (best.index, best.value) == (2, 0.1)


def test_the_order_follows_the_latest_value_and_the_best_stays() -> None:
    progress = after(result(0, 1, 100.0), result(1, 1, 50.0), result(0, 2, 20.0))
    assert indices(progress)[:2] == [1, 0]
    best = progress.best()
    assert best is not None
    assert (best.index, best.iteration, best.value) == (0, 1, 100.0)
    assert progress.leaderboard()[1].best_return == 100.0


def test_an_unknown_return_keeps_the_last_known_one() -> None:
    row = after(started(0), result(0, 1, 42.0), result(0, 2, None)).leaderboard()[0]
    assert (row.iteration, row.episode_return) == (2, 42.0)


def test_a_row_shows_only_the_tuned_values_in_the_configs_order() -> None:
    row = after(started(0, **{"lambda": 0.9, "seed": 1, "lr": 0.001})).leaderboard()[0]
    assert list(row.tuned.items()) == [("lr", 0.001), ("lambda", 0.9)]


def test_an_exploit_changes_the_values_at_once_and_counts_a_generation() -> None:
    progress = after(started(0, lr=0.1), started(1, lr=0.2), exploited(0, 1, 5, old={"lr": 0.1}, new={"lr": 0.24}))
    row = next(row for row in progress.leaderboard() if row.index == 0)
    assert (row.state, row.generation, dict(row.tuned)) == ("running", 1, {"lr": 0.24})
    progress.apply(result(0, 6, 1.0), 1.0)
    row = next(row for row in progress.leaderboard() if row.index == 0)
    assert (row.state, row.generation) == ("running", 1)
    assert progress.snapshot().exploits == 1


def test_ends_are_told_apart_and_what_still_ran_at_the_end_was_stopped() -> None:
    progress = after(started(0), started(1), started(2), ended(0), ended(1, "FAILED", error="x"), OVER)
    assert {row.index: row.state for row in progress.leaderboard()} == {
        0: "finished",
        1: "failed",
        2: "stopped",
    }


def test_a_snapshot_does_not_change_afterwards() -> None:
    progress = after(started(0, lr=0.1), result(0, 1, 1.0))
    before = progress.leaderboard()
    progress.apply(exploited(0, 1, 2, old={"lr": 0.1}, new={"lr": 0.5}), 1.0)
    assert before[0].iteration == 1
    assert before[0].tuned == {"lr": 0.1}


def test_a_restarted_trial_keeps_what_it_had() -> None:
    row = after(started(0), result(0, 3, 9.0, env_steps=500), started(0)).leaderboard()[0]
    assert (row.iteration, row.episode_return, row.env_steps) == (3, 9.0, 500)


def test_the_way_to_the_target_counts_from_the_first_known_return() -> None:
    facts = SweepFacts(population=2, stop_reward=-100.0)
    progress = after(result(0, 1, None), result(0, 2, -500.0), facts=facts)
    assert progress.fraction() == 0.0
    progress.apply(result(1, 1, -200.0), 1.0)
    assert progress.fraction() == pytest.approx(0.75)
    progress.apply(result(1, 2, -90.0), 1.0)
    assert progress.fraction() == 1.0


def test_when_all_must_reach_the_target_one_trial_is_its_share() -> None:
    facts = SweepFacts(population=4, stop_reward=100.0, stop_when="all")
    assert after(result(0, 1, 0.0), result(1, 1, 100.0), facts=facts).fraction() == pytest.approx(0.25)


def test_the_budget_that_is_spent_furthest_counts() -> None:
    facts = SweepFacts(population=2, max_iterations=10, time_budget_s=100)
    progress = SweepProgress(facts)
    progress.apply(Phase(text="Ray starts"), 0.0)
    progress.apply(started(0), 20.0)
    progress.apply(result(0, 4, 1.0), 30.0)
    assert progress.fraction() == pytest.approx(4 / 20)
    progress.tick(70.0)
    assert progress.fraction() == pytest.approx(0.5)  # the budget's clock runs from the first trial on
    progress.apply(ended(0, "FAILED"), 71.0)
    assert progress.fraction() == pytest.approx(0.51)


def test_only_a_finished_sweep_is_complete() -> None:
    stopped = SweepEnded(outcome="stopped", fit_s=1, training_slot_s=1, slots=2, trials=3)
    assert after(started(0), OVER).fraction() == 1.0
    assert after(started(0), result(0, 12, None), ended(0, "KILLED"), stopped).fraction() == pytest.approx(0.1)


RETURNS = st.one_of(st.none(), st.floats())
INDEX = st.integers(0, 5)
EVENTS = st.one_of(
    st.builds(started, INDEX),
    st.builds(result, INDEX, st.integers(-1, 100), RETURNS),
    st.builds(exploited, INDEX, INDEX, st.integers(0, 100)),
    st.builds(ended, INDEX, st.sampled_from(["FINISHED", "FAILED", "KILLED"])),
    st.sampled_from([Stopping(reason="x"), TrackingState(last_error="y"), TrackingState(), OVER, Phase(text="z")]),
    st.just(Failed(error_type="SweepError", message="w")),
)
FACTS = st.builds(
    SweepFacts,
    population=st.integers(1, 6),
    metric=st.sampled_from(["episode_reward_mean", "kl"]),
    mode=st.sampled_from(["max", "min"]),
    stop_reward=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    stop_when=st.sampled_from(["first", "all"]),
    max_iterations=st.one_of(st.none(), st.integers(1, 50)),
    time_budget_s=st.one_of(st.none(), st.floats(1, 1000)),
)


@settings(deadline=None)
@given(FACTS, st.lists(st.tuples(EVENTS, st.floats(-10, 2000))))
def test_in_any_order_of_events_the_fraction_never_falls_nor_leaves_its_range(
    facts: SweepFacts, sequence: list[tuple[Event, float]]
) -> None:
    progress, last = SweepProgress(facts), 0.0
    for event, now in sequence:
        progress.apply(event, now)
        progress.notable(event)
        assert progress.headline()
        assert last <= progress.fraction() <= 1.0
        last = progress.fraction()
        snapshot = progress.snapshot()
        for curve in snapshot.curves:
            steps = [point.iteration for point in curve.points]
            assert steps == sorted(set(steps))
        rows = snapshot.rows
        known = [row.metric_value for row in rows if row.metric_value is not None]
        assert known == sorted(known, reverse=facts.mode == "max")
        assert all(row.metric_value is None for row in rows[len(known) :])


def test_the_headline_says_how_far_it_is() -> None:
    progress = SweepProgress(CARTPOLE)
    progress.apply(Phase(text="Ray is ready"), 100.0)
    assert progress.headline() == "Ray is ready, 0 s"
    for event in (started(0), started(1), result(1, 11, 312.44), result(0, 12, 20.0)):
        progress.apply(event, 163.0)
    assert progress.headline() == "12/40 iterations, best 312.4 of 475, 1 min 03 s"
    progress.apply(ended(0, "FAILED", error="x"), 170.0)
    assert progress.headline() == "12/40 iterations, best 312.4 of 475, 1 of 3 trials ended, 1 min 10 s"
    progress.apply(Stopping(reason="Ctrl-C"), 170.0)
    assert progress.headline().startswith("stopping (Ctrl-C): 12/40 iterations")
    progress.apply(OVER, 170.0)
    assert progress.headline() == "finished: 12/40 iterations, best 312.4 of 475, 1 min 10 s"


def test_with_another_metric_the_headline_names_it() -> None:
    facts = SweepFacts(population=1, metric="kl", mode="min", stop_reward=475.0)
    progress = after(result(0, 1, 0.02, episode_return=80.0), facts=facts)
    assert progress.headline() == "1 iteration, best kl 0.02, best return 80.0 of 475, 0 s"


def test_an_exploit_is_told_with_short_names_and_what_became_of_each_value() -> None:
    old, new = {"lr": 0.001, "lambda": 0.9}, {"lr": 0.0012000001, "lambda": 0.9}
    said = lines(started(2), started(0), exploited(2, 0, 10, old=old, new=new))
    assert said == ["trial 2 exploits trial 0 at iteration 10: lr 0.001 -> 0.0012, lambda 0.9 (kept)"]


def test_a_new_best_is_told_by_tenths_of_the_way_to_the_target() -> None:
    climb = [result(0, iteration, float(value)) for iteration, value in enumerate(range(20, 470), 1)]
    said = lines(started(0), *climb)
    assert 5 <= len(said) <= 10
    assert said[0] == "new best 66.0 of 475 (trial 0, iteration 47)"


def test_without_a_target_a_new_best_is_measured_by_the_range_seen() -> None:
    facts = SweepFacts(population=1, metric="kl", mode="min")
    said = lines(*(result(0, i, value) for i, value in enumerate([5.0, 9.0, 4.9, 4.0, 3.95], 1)), facts=facts)
    assert said == ["new best kl 4 (trial 0, iteration 4)"]


@pytest.mark.parametrize(("goal", "before"), [(475.0, 470.0), (-100.0, -101.0)])
def test_reaching_the_target_is_told_once_however_small_the_step(goal: float, before: float) -> None:
    values = [before - 400, before, goal, 0.0 if goal < 0 else goal + 1, goal + 2]
    facts = SweepFacts(population=1, stop_reward=goal)
    said = lines(*(result(0, i, value) for i, value in enumerate(values, 1)), facts=facts)
    assert [line for line in said if "target" in line] == [
        f"trial 0 reaches the target: {goal} of {goal:g} at iteration 3"
    ]


def test_a_failure_is_told_with_its_own_error_and_without_escape_codes() -> None:
    error = "Traceback:\n  \x1b[36mray::Trainable\x1b[39m\n\x1b[31mValueError: lr [bold] is nan\x1b[0m\n\n"
    assert lines(started(1), result(1, 7, None), ended(1, "FAILED", error=error)) == [
        "trial 1 failed at iteration 7: ValueError: lr [bold] is nan"
    ]


def test_ends_are_told_but_not_those_that_stopping_brings_unless_they_failed() -> None:
    said = lines(
        result(0, 4, 12.0),
        ended(0),
        Stopping(reason="Ctrl-C"),
        ended(1, "KILLED", iteration=3),
        ended(2, "FAILED", error="E: x"),
    )
    assert said == [
        "trial 0 finished at iteration 4, return 12.0",
        "stopping: Ctrl-C",
        "trial 2 failed at iteration 0: E: x",
    ]


def test_only_the_event_applied_last_has_a_line() -> None:
    progress, first = SweepProgress(CARTPOLE), ended(0)
    progress.apply(first, 0.0)
    progress.apply(Phase(text="more"), 0.0)
    assert progress.notable(first) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0012, "0.0012"),
        (5e-5, "5e-05"),
        (0.123456, "0.1235"),
        (16384, "16384"),
        (40000.0, "40000"),
        (None, "-"),
    ],
)
def test_hyperparameters_are_compact(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(312.44, "312.4"), (-1234.5, "-1234.5"), (0.01234, "0.0123"), (None, "-")])
def test_measures_are_compact(value: float | None, text: str) -> None:
    assert measure(value) == text


@pytest.mark.parametrize(("value", "text"), [(950, "950"), (12_000, "12.0k"), (1_250_000, "1.25M"), (0, "0")])
def test_counts_are_compact(value: int, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (63, "1 min 03 s"), (300, "5 min"), (3660, "1 h 01 min"), (7200, "2 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_foreign_text_becomes_one_plain_line() -> None:
    assert plain("\x1b]0;title\x07\x1b[1;31mred\x1b[0m\r\nand\tmore\x00") == "red and more"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql+psycopg2://bob:p/w@db:5432/ml", "postgresql+psycopg2://bob:***@db:5432/ml"),
        ("mysql://bob:p@w@db/ml", "mysql://bob:***@db/ml"),
        ("cannot reach https://bob:pw@host/x, it is down", "cannot reach https://***@host/x, it is down"),
        ("https://t0ken@host/x", "https://***@host/x"),
        ("postgresql://db/ml?user=bob&password=pw&x=1", "postgresql://db/ml?user=bob&password=***&x=1"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("postgresql://bob@db/ml", "postgresql://bob@db/ml"),
        ("sqlite:////home/a@b:c/mlflow.db", "sqlite:////home/a@b:c/mlflow.db"),
        ("/data/run:1@2", "/data/run:1@2"),
    ],
)
def test_passwords_in_uris_are_hidden_and_the_rest_stays(text: str, hidden: str) -> None:
    assert hide_passwords(text) == hidden


def test_infinite_values_cannot_enter() -> None:
    progress = after(started(0), result(0, 1, math.inf), result(0, 2, -math.inf))
    assert progress.best() is None
    assert progress.leaderboard()[0].episode_return is None


def test_each_restart_is_told_counted_and_over_once_the_trial_runs_again() -> None:
    trial = "c0ffee_00001"
    failure = TrialRestarted(trial=trial, iteration=4, error="ValueError: broken sensor")
    anew = TrialRestarted(trial=trial, iteration=0, error="its process died")
    events = (started(1), failure, started(1), anew)
    assert lines(*events) == [
        "trial 1 failed: ValueError: broken sensor; restart 1 from iteration 4",
        "trial 1 failed: its process died; restart 2 from its beginning",
    ]
    assert [(row.state, row.restarts) for row in after(*events).leaderboard()[:1]] == [("pending", 2)]
    assert [(row.state, row.restarts) for row in after(*events, started(1)).leaderboard()[:1]] == [("running", 2)]


LOST = NodeChanged(change="lost", address="10.0.0.5", nodes=1, most=2, trials=2)
JOINED = NodeChanged(change="joined", address="10.0.0.6", nodes=2, most=2)


def test_what_becomes_of_a_node_is_told_with_its_trials() -> None:
    one = LOST.model_copy(update={"trials": 1, "nodes": 0})
    none = LOST.model_copy(update={"trials": 0})
    refused = NodeChanged(change="refused", address="10.0.0.7", nodes=2, most=2, why="it sees no folder")
    assert lines(LOST, JOINED, refused, one, none) == [
        "Ray node 10.0.0.5 is lost: 1 of 2 left; its 2 trials go on from their last checkpoints",
        "Ray node 10.0.0.6 has joined: 2 nodes now",
        "Ray node 10.0.0.7 has joined and is not used: it sees no folder",
        "Ray node 10.0.0.5 is lost: 0 of 2 left; its trial goes on from its last checkpoint",
        "Ray node 10.0.0.5 is lost: 1 of 2 left; no trial was on it",
    ]


def test_the_headline_says_how_many_nodes_are_left_while_some_are_missing() -> None:
    trains = (started(0), result(0, 1, 20.0))
    assert "nodes" not in after(*trains).headline()
    assert "1 of 2 nodes left" in after(*trains, LOST).headline()
    assert "nodes" not in after(*trains, LOST, JOINED).headline()
    assert "nodes" not in after(*trains, LOST, OVER).headline()


def test_a_lost_node_is_no_restart_of_the_trial_which_waits_until_it_starts() -> None:
    lost = TrialRestarted(trial="c0ffee_00001", iteration=4, error="its machine is gone", lost_node=True)
    events = (started(1), lost, TrialWaits(trial="c0ffee_00001"))
    assert lines(*events) == ["trial 1 has lost its node and goes on from iteration 4"]
    assert [(row.state, row.restarts) for row in after(*events).leaderboard()[:1]] == [("waiting", 0)]
    assert after(*events, started(1)).leaderboard()[0].state == "running"
    assert after(*events, OVER).leaderboard()[0].state == "stopped"


def test_a_trial_that_failed_for_good_says_after_how_many_restarts() -> None:
    failure = TrialRestarted(trial="c0ffee_00001", iteration=4, error="ValueError: no")
    said = lines(started(1), result(1, 5, 20.0), failure, ended(1, "FAILED", iteration=5, error="ValueError: no"))
    assert said[-1] == "trial 1 failed at iteration 5 after 1 restart: ValueError: no"


def test_what_earlier_attempts_told_counts_without_being_said_again() -> None:
    progress = SweepProgress(CARTPOLE)
    told: list[TrialStarted | Result | Exploited | TrialEnded] = [
        TrialStarted(trial="a", index=0),
        TrialStarted(trial="b", index=1),
        Result(trial="a", iteration=1, episode_return=20.0, metric_value=20.0),
        Result(trial="b", iteration=1, episode_return=90.0, metric_value=90.0),
    ]
    first, last = Past(events=told[:2], last=False), Past(events=told[2:], last=True)
    progress.apply(first, 0.0)
    assert progress.notable(first) is None
    progress.apply(last, 0.0)
    assert progress.notable(last) == "going on: trial 0 at iteration 1, trial 1 at iteration 1"
    assert [row.metric_value for row in progress.leaderboard()] == [90.0, 20.0, None]  # of a population of 3
    assert progress.snapshot().iteration == 1


def test_a_notice_is_a_line_of_its_own() -> None:
    progress = SweepProgress(CARTPOLE)
    notice = Notice(text="job ps-1 is Queued")
    progress.apply(notice, 0.0)
    assert progress.notable(notice) == "job ps-1 is Queued"
    assert "job ps-1 is Queued" in progress.headline()


def test_a_job_that_begins_again_is_shown_as_it_is_then() -> None:
    """Its first life was seen by the same eyes, and stopped in order."""
    progress = SweepProgress(CARTPOLE)
    first = [
        TrialStarted(trial="a", index=0),
        TrialStarted(trial="b", index=1),
        Result(trial="a", iteration=2, episode_return=5.0, metric_value=5.0),
        Exploited(trial="a", iteration=2, donor="b"),
    ]
    for event in [*first, Stopping(reason="it was told to stop"), Past(events=first, last=True)]:
        progress.apply(event, 1.0)
    assert "stopping" not in progress.headline()
    assert [row.generation for row in progress.leaderboard() if row.trial == "a"] == [1]

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plato_core.errors import ConfigError, SelectionError
from plato_core.manifest import Manifest, checkpoint_name
from plato_core.selection import (
    CheckpointRecord,
    Mode,
    RunRecord,
    best_checkpoint,
    choose,
)

METRIC = "episode_reward_mean"


def run(run_id: str, value: float | None = None, status: str = "FINISHED", start: int | None = 0) -> RunRecord:
    metrics = {} if value is None else {METRIC: value}
    tags = {"mlflow.parentRunId": "parent"}
    return RunRecord(run_id, f"trial {run_id}", status, start, None, metrics, {}, tags)


def checkpoint(
    iteration: int, score: float | None = None, mode: Mode | None = None, run_id: str = "a"
) -> CheckpointRecord:
    manifest = Manifest(
        sweep_id="s",
        trial_id="t",
        trial_name="t",
        iteration=iteration,
        metric=METRIC,
        mode=mode,
        score=score,
        hyperparameters={},
        versions={},
        created="2026-01-01T00:00:00+00:00",
        files={},
    )
    return CheckpointRecord(run_id, iteration, checkpoint_name(iteration), manifest)


def one_each(run_id: str) -> Sequence[CheckpointRecord]:
    return [checkpoint(1, 1.0, run_id=run_id)]


def only(*run_ids: str) -> Callable[[str], Sequence[CheckpointRecord]]:
    return lambda run_id: one_each(run_id) if run_id in run_ids else []


@pytest.mark.parametrize(("mode", "winner"), [("max", "b"), ("min", "a")])
@pytest.mark.parametrize("rank_metric", [METRIC, f"metrics.{METRIC}"])
def test_the_best_value_wins(rank_metric: str, mode: Mode, winner: str) -> None:
    chosen = choose([run("a", 1.0), run("b", 2.0)], rank_metric, mode, one_each)
    assert (chosen.run.run_id, chosen.checkpoint.run_id, chosen.warnings) == (winner, winner, [])
    assert chosen.rank_value == {"a": 1.0, "b": 2.0}[winner]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_value_that_is_no_number_never_wins(value: float | None, mode: Mode) -> None:
    chosen = choose([run("a", value), run("b", -5.0)], METRIC, mode, one_each)
    assert (chosen.run.run_id, chosen.warnings) == ("b", [])


def test_ties_go_to_the_earlier_run_and_then_to_the_lower_id() -> None:
    runs = [
        run("a", 1.0, start=None),
        run("c", 1.0, start=10),
        run("b", 1.0, start=10),
        run("d", 1.0, start=20),
    ]
    assert choose(runs, METRIC, "max", one_each).run.run_id == "b"


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING", "SCHEDULED"])
def test_a_better_run_that_is_not_finished_is_named_in_a_warning(status: str) -> None:
    chosen = choose([run("a", 500.0, status), run("b", 2.0)], METRIC, "max", one_each)
    assert chosen.run.run_id == "b"
    assert chosen.warnings == [
        f"Run trial a (a) ranks before the winner with episode_reward_mean 500, "
        f"but is {status}, not FINISHED: it is passed over."
    ]


def test_a_better_run_without_a_complete_checkpoint_is_named_in_a_warning() -> None:
    chosen = choose([run("a", 500.0), run("b", 2.0), run("c", 1.0, "FAILED")], METRIC, "max", only("b"))
    assert chosen.run.run_id == "b"
    assert [("trial a" in line, "no complete checkpoint" in line) for line in chosen.warnings] == [(True, True)]


def test_checkpoints_are_asked_for_no_further_than_the_winner() -> None:
    asked = []

    def checkpoints_of(run_id: str) -> Sequence[CheckpointRecord]:
        asked.append(run_id)
        return only("b")(run_id)

    runs = [run("c", 1.0), run("x", 9.0, "FAILED"), run("b", 2.0), run("a", 3.0)]
    choose(runs, METRIC, "max", checkpoints_of)
    assert asked == ["a", "b"]


def test_many_warnings_are_shortened() -> None:
    runs = [run(f"f{number:02}", 100.0 + number, "FAILED") for number in range(14)] + [run("w", 1.0)]
    warnings = choose(runs, METRIC, "max", one_each).warnings
    assert len(warnings) == 11
    assert "trial f13" in warnings[0]
    assert warnings[-1].startswith("4 more runs")


def test_if_none_qualifies_the_error_says_what_was_looked_for_and_found() -> None:
    runs = [run("a", 7.0, "FAILED"), run("b", 5.0), run("c", math.nan), run("d")]
    with pytest.raises(SelectionError) as caught:
        choose(runs, f"metrics.{METRIC}", "max", only("a"))
    assert str(caught.value) == (
        "No run qualifies among the children of run parent: looked for a FINISHED run with a finite "
        "episode_reward_mean (max) and a complete checkpoint, found 4:\n"
        "  trial a (a): FAILED, episode_reward_mean 7, 1 complete checkpoint\n"
        "  trial b (b): FINISHED, episode_reward_mean 5, 0 complete checkpoints\n"
        "  trial c (c): FINISHED, episode_reward_mean nan, 0 complete checkpoints\n"
        "  trial d (d): FINISHED, no episode_reward_mean, 0 complete checkpoints"
    )


def test_the_error_is_shortened_beyond_ten_runs() -> None:
    with pytest.raises(SelectionError) as caught:
        choose([run(f"{number:02}", 1.0) for number in range(25)], METRIC, "max", only())
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and 15 more"


def test_trials_without_any_finished_episode_are_told_to_train_longer() -> None:
    with pytest.raises(SelectionError, match=r"^No episode has ended in any trial; train longer, .* No run qualifies"):
        choose([run("a"), run("b")], METRIC, "max", one_each)
    with pytest.raises(SelectionError, match=r"^No run qualifies"):
        choose([run("a"), run("b")], "vf_loss", "min", one_each)


def test_no_runs_at_all_is_an_error_that_names_the_parent() -> None:
    with pytest.raises(SelectionError, match=r"the children of run p1: .* found no runs at all"):
        choose([], METRIC, "max", one_each, among="the children of run p1")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="'maximum'"):
        choose([run("a", 1.0)], METRIC, "maximum", one_each)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("scores", "mode", "iteration"),
    [
        ({1: 5.0, 2: 9.0, 3: 7.0}, "max", 2),
        ({1: 5.0, 2: 9.0, 3: 7.0}, "min", 1),
        ({1: 9.0, 2: 9.0, 3: 7.0}, "max", 2),
        ({1: 7.0, 2: 9.0, 3: 7.0}, "min", 3),
        ({1: -1e300, 2: None}, "max", 1),
        ({1: 1e300, 2: None}, "min", 1),
        ({1: None, 2: None}, "max", 2),
    ],
)
def test_the_best_checkpoint_is_by_score_and_the_later_of_equals(
    scores: dict[int, float | None], mode: Mode, iteration: int
) -> None:
    checkpoints = [checkpoint(*entry) for entry in scores.items()]
    for ordered in (checkpoints, checkpoints[::-1]):
        assert best_checkpoint(ordered, mode).iteration == iteration


def test_scores_compare_by_the_mode_that_they_were_written_with() -> None:
    by_reward = [checkpoint(1, 5.0, "max"), checkpoint(2, 9.0, "max"), checkpoint(3, 7.0, "max")]
    shortest = choose([run("a", 1.0)], METRIC, "min", lambda _: by_reward)
    assert shortest.checkpoint.iteration == 2


runs_strategy = st.lists(
    st.builds(
        run,
        st.text("abcdef", min_size=1, max_size=4),
        st.none() | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0]) | st.floats(),
        st.sampled_from(["FINISHED", "FINISHED", "FAILED", "KILLED", "RUNNING"]),
        st.none() | st.integers(0, 3),
    ),
    max_size=12,
    unique_by=lambda record: record.run_id,
)
modes: st.SearchStrategy[Mode] = st.sampled_from(["max", "min"])


@given(runs_strategy, modes, st.randoms(use_true_random=False))
def test_the_winner_is_unbeaten_and_the_order_of_the_runs_does_not_matter(
    runs: list[RunRecord], mode: Mode, chance: random.Random
) -> None:
    complete = {record.run_id for record in runs if chance.random() < 0.7}
    qualifying = [
        record
        for record in runs
        if record.status == "FINISHED"
        and record.run_id in complete
        and math.isfinite(record.metrics.get(METRIC, math.nan))
    ]
    shuffled = chance.sample(runs, len(runs))
    if not qualifying:
        messages = set()
        for order in (runs, shuffled):
            with pytest.raises(SelectionError) as caught:
                choose(order, METRIC, mode, only(*complete))
            messages.add(str(caught.value))
        assert len(messages) == 1
        return
    chosen = choose(runs, METRIC, mode, only(*complete))
    assert chosen == choose(shuffled, METRIC, mode, only(*complete))
    assert chosen.run in qualifying
    assert math.isfinite(chosen.rank_value)
    best = (max if mode == "max" else min)(record.metrics[METRIC] for record in qualifying)
    assert chosen.rank_value == best
    equals = [record for record in qualifying if record.metrics[METRIC] == best]
    assert all(
        (chosen.run.start_time is not None and chosen.run.start_time <= (record.start_time or 0))
        or record.start_time is None
        for record in equals
    )
    better = [
        record
        for record in runs
        if record not in qualifying
        and math.isfinite(value := record.metrics.get(METRIC, math.nan))
        and (value > best if mode == "max" else value < best)
    ]
    text = "\n".join(chosen.warnings)
    if len(chosen.warnings) <= 10:
        assert all(f"({record.run_id})" in text for record in better)

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plato_core.errors import CheckpointError, ConfigError, PlatoError, SweepError, SweepStopped
from plato_core.sweep.events import (
    Checkpointed,
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
    encode,
    parse,
)

EVERY_KIND: list[Event] = [
    Phase(text="Ray is ready"),
    Notice(text="job ps-1 is Queued"),
    TrialStarted(trial="t_0", index=0, hyperparameters={"lr": 1e-3, "num_sgd_iter": 10}),
    Result(
        trial="t_0",
        iteration=3,
        episode_return=21.5,
        metric_value=21.5,
        hyperparameters={"lr": 1e-3},
        env_steps=12_000,
        time_total_s=4.25,
        done=True,
    ),
    Exploited(
        trial="t_0",
        iteration=10,
        donor="t_1",
        donor_iteration=9,
        checkpoint="/somewhere/checkpoint_000004",
        old={"lr": 1e-3},
        new={"lr": 1.2e-3},
        operations={"lr": "* 1.2"},
    ),
    Checkpointed(trial="t_0", iteration=10, score=33.0),
    TrialRestarted(trial="t_0", iteration=10, error="ValueError: no", lost_node=True),
    TrialWaits(trial="t_0"),
    NodeChanged(change="refused", address="10.0.0.7", nodes=1, most=2, trials=0, why="it sees no folder"),
    TrialEnded(trial="t_0", status="FAILED", iteration=11, error="ValueError: no"),
    Past(events=[TrialStarted(trial="t_0", index=0), Result(trial="t_0", iteration=1)], last=True),
    Stopping(reason="Ctrl-C"),
    TrackingState(pending=3, sent=40, rejected=1, last_error="503"),
    SweepEnded(outcome="stopped", fit_s=38.5, training_slot_s=55.0, slots=2, trials=4, spool="/spool"),
    Failed(error_type="ConfigError", message="population 0"),
]


@pytest.mark.parametrize("event", EVERY_KIND, ids=lambda event: event.kind)
def test_every_kind_arrives_as_it_was_sent_in_one_line(event: Event) -> None:
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse(line) == event


def test_every_kind_of_the_union_is_tested() -> None:
    assert {type(event) for event in EVERY_KIND} == set(Event.__args__)


def test_nan_and_infinity_are_written_as_null() -> None:
    event = Result(
        trial="t",
        iteration=1,
        episode_return=math.nan,
        metric_value=-math.inf,
        hyperparameters={"lr": math.inf, "layers": [1.0, math.nan]},
    )
    fields = json.loads(encode(event), parse_constant=lambda name: pytest.fail(f"{name} in the line"))
    assert fields["episode_return"] is None
    assert fields["metric_value"] is None
    assert fields["hyperparameters"] == {"lr": None, "layers": [1.0, None]}


def test_numpy_values_arrive_as_plain_numbers() -> None:
    values = {"lr": np.float32(0.5), "num_sgd_iter": np.int64(7), "flag": np.bool_(True), "v": np.ones(2)}
    event = Result(trial="t", iteration=np.int64(4), episode_return=np.float64(2.5), hyperparameters=values)  # type: ignore[arg-type]
    arrived = parse(encode(event))
    assert isinstance(arrived, Result)
    assert arrived.iteration == 4
    assert arrived.episode_return == 2.5
    assert arrived.hyperparameters == {"lr": 0.5, "num_sgd_iter": 7, "flag": True, "v": [1.0, 1.0]}


def test_a_hyperparameter_that_json_cannot_say_arrives_as_its_text() -> None:
    event = TrialStarted(trial="t", index=0, hyperparameters={"activation": complex(1, 2)})  # type: ignore[dict-item]
    assert event.hyperparameters == {"activation": "(1+2j)"}


def test_undecodable_text_does_not_break_the_line() -> None:
    arrived = parse(encode(Stopping(reason="a file named \udcff")))
    assert arrived == Stopping(reason="a file named ?")


def test_a_huge_error_keeps_its_ends_and_a_line_below_64_kib() -> None:
    error = "first\n" + "\n" * 500_000 + "ValueError: last"
    line = encode(TrialEnded(trial="t", status="FAILED", error=error))
    arrived = parse(line)
    assert len(line) < 64 * 1024
    assert isinstance(arrived, TrialEnded)
    assert arrived.error is not None
    assert arrived.error.startswith("first\n")
    assert arrived.error.endswith("ValueError: last")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"ray says hello",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"kind": "of_next_year"}',
        b'{"kind": "result"}',
    ],
)
def test_what_is_no_known_event_is_passed_over(line: bytes) -> None:
    assert parse(line) is None


def test_unknown_fields_are_passed_over() -> None:
    assert parse(b'{"kind": "phase", "text": "ready", "colour": "blue"}') == Phase(text="ready")


@settings(deadline=None)
@given(st.text(), st.one_of(st.none(), st.floats()), st.dictionaries(st.text(), st.integers() | st.floats()))
def test_any_result_can_be_sent(trial: str, value: float | None, hyperparameters: dict[str, float]) -> None:
    event = Result(trial=trial, iteration=1, episode_return=value, hyperparameters={**hyperparameters})
    assert parse(encode(event)) == event


@pytest.mark.parametrize("error", [ConfigError("lr -1"), CheckpointError("sha256"), SweepError("x"), PlatoError("y")])
def test_our_errors_are_raised_again_as_they_were(error: PlatoError) -> None:
    arrived = parse(encode(Failed.of(error)))
    assert isinstance(arrived, Failed)
    assert type(arrived.error()) is type(error)
    assert str(arrived.error()) == str(error)


def test_a_stopped_sweep_keeps_its_signal() -> None:
    error = Failed.of(SweepStopped("stopped by SIGTERM", 15)).error()
    assert isinstance(error, SweepStopped)
    assert error.signal_number == 15


@pytest.mark.parametrize("name", ["RuntimeError", "ClassVar", "", "SweepStopped"])
def test_an_error_of_an_unknown_class_becomes_a_sweep_error(name: str) -> None:
    error = Failed(error_type=name, message="boom").error()
    assert type(error) is SweepError
    assert str(error) == "boom"

"""What is told of a tracking store that is away, and how often, through the sweep's progress."""

from __future__ import annotations

from plato_core.report.progress import SweepFacts, SweepProgress
from plato_core.report.tracking_outages import SETTLED_S
from plato_core.sweep.events import TrackingState

WORKS, AWAY = TrackingState(), TrackingState(last_error="429", pending=3)
END_WAITS, END_WORKS = TrackingState(last_error="429", pending=3, gives_up_s=900.0), TrackingState(gives_up_s=900.0)
WAITS = "tracking waits, training goes on: 429"


def told(*states: TrackingState, every_s: float = 5.0) -> list[str]:
    """The lines of a tracker that says every so many seconds how it fares."""
    progress, said = SweepProgress(SweepFacts(population=2)), []
    for number, state in enumerate(states):
        progress.apply(state, number * every_s)
        if (line := progress.notable(state)) is not None:
            said.append(line)
    return said


def test_an_absent_tracker_is_told_when_it_goes_and_when_it_is_back_for_good() -> None:
    error = "http://bob:hunter2@mlflow:5000 refused the connection"
    away = TrackingState(last_error=error)
    assert told(WORKS, away, away, WORKS, WORKS, every_s=SETTLED_S) == [
        "tracking waits, training goes on: http://***@mlflow:5000 refused the connection",
        "tracking goes on",
    ]


def test_a_tracker_that_throttles_back_and_forth_is_told_once() -> None:
    assert told(*[AWAY, WORKS, WORKS] * 50) == [WAITS]
    assert told(*[AWAY, WORKS] * 50, *[WORKS] * 20) == [WAITS, "tracking goes on"]


def test_a_later_outage_is_told_again() -> None:
    assert told(AWAY, *[WORKS] * 20, AWAY, *[WORKS] * 20) == [WAITS, "tracking goes on"] * 2


def test_that_the_end_waits_for_the_tracker_is_told_once_and_when_it_is_over() -> None:
    assert told(AWAY, END_WAITS, END_WAITS, END_WORKS, END_WAITS, END_WORKS) == [
        WAITS,
        "all is trained, tracking waits, up to 15 min: 429",
        "tracking goes on",
    ]


def test_what_the_tracker_refused_for_good_is_told_once() -> None:
    refused = TrackingState(rejected=2)
    assert told(refused, TrackingState(rejected=3)) == ["the tracker refused 2 entries for good"]

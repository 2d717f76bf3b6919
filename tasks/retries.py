"""Which failures of a task are worth another try, and which a longer wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import get_run_logger
from prefect.client.schemas.objects import State

from plato_core.errors import StoreAway, TrackingError
from plato_core.report.sinks import say
from plato_core.tracking import patience

T = TypeVar("T")

# Seconds between tries; MLflow's client and the transfers have retried in shorter steps before.
DELAY_S = 5


def store_may_come_back(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a task failed at a store or a network, which may answer next time.

    A mistake in the input, a sweep without a winner or a damaged checkpoint stays what it is; and who was waited for in
    vain is not waited for again.
    """
    error = state.result(raise_on_failure=False)
    return isinstance(error, TrackingError | OSError) and not isinstance(error, StoreAway)


def patiently(ask: Callable[[], T], patience_s: float) -> T:
    """Returns what a store answers; see `plato_core.tracking.patience`. The run's log and the terminal are told.

    Args:
        ask: Asks it.
        patience_s: How long it is waited for while it is away or throttles.
    """
    return patience.patiently(ask, patience_s, lambda line: say(line, get_run_logger()))

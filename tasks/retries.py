"""Which failures of a task are worth another try."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State

from plato_core.errors import TrackingError

# Seconds between tries; MLflow's client and the transfers have retried in shorter steps before.
DELAY_S = 5


def store_may_come_back(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a task failed at a store or a network, which may answer next time.

    A mistake in the input, a sweep without a winner or a damaged checkpoint stays what it is.
    """
    error = state.result(raise_on_failure=False)
    return isinstance(error, TrackingError | OSError)

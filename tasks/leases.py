"""A sweep that holds a place under a concurrency limit, and Prefect's server away.

Prefect renews the place every four minutes and ends the run when it cannot (Prefect 3.8.8, `prefect/flow_engine.py`):
a server that restarts or is gone for some minutes would throw hours of training away. A sweep goes on instead; what
is lost is that another one may begin beside it before it ends.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease

_IN_ENGINE = "maintain_concurrency_lease"


def sweeps_outlive_leases() -> None:
    """Has flow runs of this process go on, with a warning in their log, when their lease cannot be renewed."""
    assert hasattr(flow_engine, _IN_ENGINE), "this Prefect keeps its leases elsewhere"
    setattr(flow_engine, _IN_ENGINE, _maintain)


def _maintain(lease_id: Any, lease_duration: float, **_: bool) -> AbstractContextManager[None]:
    return maintain_concurrency_lease(lease_id, lease_duration, raise_on_lease_renewal_failure=False)

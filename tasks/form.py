"""What the form of the current run's deployment showed."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import get_client
from prefect.runtime import deployment


def deployment_parameters() -> dict[str, Any] | None:
    """Returns the parameters of the deployment that the current flow run is of; None if it is of none.

    A run without them would take the deployment's own settings for a person's: better to fail at a server that
    does not answer in its first seconds.
    """
    if (deployment_id := deployment.id) is None:
        return None
    with get_client(sync_client=True) as client:
        return client.read_deployment(deployment_id).parameters

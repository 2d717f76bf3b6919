"""How questions reach Azure. A module of its own, as it imports azure-core, which takes its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from azure.core.pipeline.transport import RequestsTransport

from plato_core.aml.credentials import TIMEOUTS, hush

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.credentials import TokenCredential

    from plato_core.aml.workspace import Workspace

_LONGEST_S = 10.0


class PromptTransport(RequestsTransport):
    """Has azure-core's retries wait for some seconds at most, also where Azure asks for minutes by `Retry-After`.

    There are few of them in one question. Whoever asks then waits by himself, for longer each time, and hears
    meanwhile that a job is to be cancelled.
    """

    def sleep(self, duration: float) -> None:
        """Wait before a retry; see azure-core's `HttpTransport`."""
        super().sleep(min(duration, _LONGEST_S))


def make_ml_client(credential: TokenCredential, workspace: Workspace, **options: Any) -> MLClient:
    """Return the SDK's client of a workspace, which says nothing by itself and waits for seconds, not minutes.

    Args:
        credential: Whoever asks.
        workspace: Which is asked.
        options: More of the client's own.
    """
    from azure.ai.ml import MLClient

    hush()
    names = (workspace.subscription_id, workspace.resource_group, workspace.name)
    return MLClient(credential, *names, enable_telemetry=False, transport=PromptTransport(**TIMEOUTS), **options)

"""How questions reach Azure. A module of its own, as it imports azure-core, which takes its time."""

from __future__ import annotations

from azure.core.pipeline.transport import RequestsTransport

_LONGEST_S = 10.0


class PromptTransport(RequestsTransport):
    """Has azure-core's retries wait for some seconds at most, also where Azure asks for minutes by `Retry-After`.

    There are few of them in one question. Whoever asks then waits by himself, for longer each time, and hears
    meanwhile that a job is to be cancelled.
    """

    def sleep(self, duration: float) -> None:
        """Wait before a retry; see azure-core's `HttpTransport`."""
        super().sleep(min(duration, _LONGEST_S))

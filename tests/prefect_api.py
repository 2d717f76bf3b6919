"""Asking Prefect's API, as all servers of the tests are asked."""

from __future__ import annotations

from typing import Any

import httpx
import loopback
import stamina

# A server on SQLite, on a slow machine, keeps one of many waiting for long.
_ANSWERS_WITHIN_S = 180.0


def _busy(error: Exception) -> bool:
    """503 is "try again", of a SQLite file that another transaction has locked; Prefect's own client does so too."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.SERVICE_UNAVAILABLE


@stamina.retry(on=_busy, attempts=None, timeout=_ANSWERS_WITHIN_S, wait_max=1.0)
def ask(url: str, method: str, body: Any = None, auth: tuple[str, str] | None = None) -> Any:
    """Asks, and returns what comes back; None if nothing does.

    Raises:
        httpx.HTTPStatusError: The server refuses.
    """
    response = loopback.request(method, url, json=body, auth=auth, timeout=_ANSWERS_WITHIN_S)
    response.raise_for_status()
    return response.json() if response.content else None

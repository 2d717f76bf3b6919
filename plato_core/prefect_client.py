"""The Prefect server that a command is meant for: the one that the user named, or a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from plato_core.errors import ConfigError
from plato_core.report.text import hide_passwords

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@contextmanager
def named_server() -> Iterator[SyncPrefectClient]:
    """A client of the server at `PREFECT_API_URL`, or of the active profile; never of a temporary one.

    Raises:
        ConfigError: None is named, or it does not answer.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:  # empty counts as unset: Prefect would start a server of its own
        raise ConfigError("PREFECT_API_URL is not set; give it a server's address, as `plato up` prints one")
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.TransportError as error:
        raise ConfigError(
            f"PREFECT_API_URL: no Prefect server answers at {hide_passwords(url)} ({error}); start one with `plato up`"
        ) from None


def check_answers(url: str) -> None:
    """See whether the server that the user named for a sweep answers; of one that does not Prefect makes a traceback.

    Args:
        url: Its address, as Prefect's settings have it.

    Raises:
        ConfigError: It does not.
    """
    import httpx
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if isinstance(error, httpx.TransportError | OSError):
        raise ConfigError(
            f"PREFECT_API_URL: no Prefect server answers at {hide_passwords(url)} ({error}); start it, or unset "
            "PREFECT_API_URL, and the sweep has a server of its own"
        )

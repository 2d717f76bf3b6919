"""The state of a job's flow run, as Prefect's API tells it, and what exit code it makes."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from plato_core.aml.jobsettings import JobSettings
from plato_core.errors import AmlError, ConfigError, PlatoError

Kind = Literal["COMPLETED", "CANCELLED", "CANCELLING", "OTHER"]
Patience = Literal["none", "some", "much"]
# In between a job has no time to wait, least of all when its node is taken away. In its first seconds it says soon that
# it cannot reach the API; at its end it may wait for a server that restarts.
_PATIENCE: dict[Patience, dict[str, str]] = {
    "none": {"PREFECT_CLIENT_MAX_RETRIES": "0", "PREFECT_API_REQUEST_TIMEOUT": "4"},
    "some": {"PREFECT_CLIENT_MAX_RETRIES": "2", "PREFECT_API_REQUEST_TIMEOUT": "20"},
    "much": {},
}
# So long a process may still do something after its run has ended, such as send its last log lines.
OVERDUE_S = 180.0


@dataclass(frozen=True)
class RunState:
    """A flow run's state.

    Attributes:
        kind: What counts for the exit code.
        name: As Prefect shows it.
        message: Why, if it says so.
        final: Whether no other follows.
    """

    kind: Kind
    name: str
    message: str | None
    final: bool


def exit_code(kind: Kind, *, told_to_stop: bool) -> int:
    """Return the exit code of a job whose flow run is in this state at its end.

    Args:
        kind: The state.
        told_to_stop: Whether the job was: then a run that waits to be tried again is no failure.
    """
    if kind == "COMPLETED":
        return 0
    return 128 + signal.SIGTERM if kind == "CANCELLED" or told_to_stop else 1


class Overdue:
    """Whether a process outlives its flow run for too long."""

    def __init__(self) -> None:
        self._final_since: float | None = None

    def after(self, state: RunState | None, now: float) -> bool:
        """Say whether it does.

        Args:
            state: The run's state; None where nobody knows, and it may be as before.
            now: Of the monotonic clock, in seconds.
        """
        if state is None:
            return False
        if not state.final:
            self._final_since = None
            return False
        self._final_since = now if self._final_since is None else self._final_since
        return now - self._final_since >= OVERDUE_S


def ends_in_order(state: RunState | None) -> bool:
    """Say whether a flow whose job is told to stop may end by itself, and so end its run for good.

    It may where the run is cancelled, or over. Else Azure ML takes the node away, and begins the job again elsewhere:
    the run is to go on there. Of a job that was cancelled in Studio the worker says so.

    Args:
        state: The run's; None where nobody knows.
    """
    return state is not None and (state.final or state.kind == "CANCELLING")


class FlowRunReader:
    """Asks for the flow run's state.

    Args:
        job: Names the run and the API.
        secrets: Prefect's settings that sign in there; for these requests only.
    """

    def __init__(self, job: JobSettings, secrets: dict[str, str]) -> None:
        self._job, self._secrets = job, secrets

    def state(self, patience: Patience) -> RunState:
        """Return it as it is now.

        Args:
            patience: For how long to try.

        Raises:
            AmlError: The API cannot be reached, or refuses.
            ConfigError: It knows no such run.
        """
        import httpx
        from prefect.client.orchestration import get_client
        from prefect.exceptions import ObjectNotFound

        url = self._job.shown_api_url
        try:
            with self._signed_in(patience), get_client(sync_client=True) as client:
                state = client.read_flow_run(self._job.flow_run_id).state
        except ObjectNotFound:
            raise ConfigError(
                f"the Prefect API at {url} has no flow run {self._job.flow_run_id}; is it the server of the worker?"
            ) from None
        except httpx.HTTPStatusError as error:
            raise AmlError(_refused(url, error.response.status_code)) from None
        except (httpx.TransportError, httpx.InvalidURL, RuntimeError) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise AmlError(
                f"no Prefect API answers this job at {url} ({why}); set api_url of the work pool to an address that "
                "the compute reaches, and open the way to it (virtual network, firewall, proxy)"
            ) from None
        if state is None:
            return RunState("OTHER", "in no state", None, final=False)
        known: dict[str, Kind] = {
            "COMPLETED": "COMPLETED",
            "CANCELLED": "CANCELLED",
            "CANCELLING": "CANCELLING",
        }
        message = None if state.message is None else " ".join(state.message.split())
        return RunState(known.get(state.type.value, "OTHER"), state.name or state.type.value, message, state.is_final())

    def glance(self) -> RunState | None:
        """Return it as it is now; None where the API does not say so at once."""
        try:
            return self.state("none")
        except PlatoError:
            return None

    def _signed_in(self, patience: Patience) -> AbstractContextManager[object]:
        from prefect import settings

        overrides = {**_PATIENCE[patience], **self._secrets}
        return settings.temporary_settings({getattr(settings, name): value for name, value in overrides.items()})


def _refused(url: str, status: int) -> str:
    if status in (401, 403):
        return (
            f"the Prefect API at {url} refuses this job ({status}); set api_key_secret or api_auth_secret of the work "
            "pool to the Key Vault secret that holds Prefect's API key or auth string"
        )
    return f"the Prefect API at {url} answers {status} when asked for the flow run"

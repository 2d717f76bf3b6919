"""The few requests to the stack's servers that the stack itself makes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx

from plato_core.stack.settings import MLFLOW, PREFECT, WORK_POOL, StackSettings

_TIMEOUT_S = 10.0
_DESCRIPTION = "Sweeps on this machine, each a process of the stack's worker."


class StackApi:
    """The servers of a stack, over HTTP.

    Args:
        settings: Of the stack.
    """

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        # Not through the proxy that the user's environment may name.
        self._http = httpx.Client(timeout=_TIMEOUT_S, trust_env=False)

    def healthy(self, part: str) -> bool:
        """Tells whether a server answers."""
        urls = {PREFECT: f"{self._settings.api_url}/health", MLFLOW: f"{self._settings.mlflow_url}/health"}
        try:
            return self._http.get(urls[part]).is_success
        except httpx.HTTPError:
            return False

    def ensure_work_pool(self) -> None:
        """Makes the work pool, and sets its limit if the settings have one. What a job of it is, its worker adds."""
        try:
            self._request("POST", "/work_pools/", {"name": WORK_POOL, "type": "process", "description": _DESCRIPTION})
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
        if (limit := self._settings.concurrency_limit) is not None:
            self._request("PATCH", f"/work_pools/{WORK_POOL}", {"concurrency_limit": limit})

    def work_pool_is_paused(self) -> bool:
        """Tells whether the worker is given no runs."""
        return self._request("GET", f"/work_pools/{WORK_POOL}")["is_paused"]

    def pause_work_pool(self, paused: bool) -> None:
        """Has the worker be given no further runs, or again."""
        self._request("PATCH", f"/work_pools/{WORK_POOL}", {"is_paused": paused})

    def worker_polls(self, since: float) -> bool:
        """Tells whether the pool's worker is online, by a heartbeat after `since`, in seconds since the epoch."""
        try:
            workers = self._request("POST", f"/work_pools/{WORK_POOL}/workers/filter", {})
        except httpx.HTTPError:  # the pool is made by and by, and a server may be on its way back
            return False
        return any(
            worker["status"] == "ONLINE" and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= since
            for worker in workers
        )

    def unfinished(self) -> list[str]:
        """Returns the ids of the flow runs that the worker has taken up and that have not come to an end."""
        taken_up = {
            "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
            "work_pools": {"name": {"any_": [WORK_POOL]}},
        }
        return [run["id"] for run in self._request("POST", "/flow_runs/filter", taken_up)]

    def set_state(self, run_id: str, state: str, message: str, force: bool = False) -> None:
        """Proposes a state of a flow run, or with `force` sets it."""
        body = {"state": {"type": state, "message": message}, "force": force}
        self._request("POST", f"/flow_runs/{run_id}/set_state", body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self._http.request(method, f"{self._settings.api_url}{path}", json=body)
        response.raise_for_status()
        return response.json() if response.content else None

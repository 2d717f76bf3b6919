"""What a test may do to the cloud: hold the queue, preempt a job, kill a node, plan failures, read the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aml_emulator import processes
from aml_emulator.cloud import PUBLISHED_HOST, VAULT_HOST
from aml_emulator.faults import Faults
from aml_emulator.messages import ServiceError
from aml_emulator.state import Compute, Job, State
from aml_emulator.tokens import Tokens


class Control:
    """Actions by name, with JSON arguments; README.md lists them."""

    def __init__(self, state: State, tokens: Tokens, faults: Faults) -> None:
        self._state, self._tokens, self._faults = state, tokens, faults
        self._actions: dict[str, Callable[..., Any]] = {
            "state": self._show,
            "fault": lambda **wanted: faults.add(wanted),
            "clear_faults": faults.clear,
            "faults": faults.left,
            "secret": self._secret,
            "secrets": lambda: [*tokens.all_secrets(), *state.secrets.values()],
            "hold": lambda: self._hold(True),
            "release": lambda: self._hold(False),
            "preempt": self._preempt,
            "kill_node": lambda job, node: processes.kill_node(state.id, self._job(job).name, node),
            "status": lambda job, status: state.set_status(self._job(job), status),
            "fail_next": self._fail_next,
            "compute": self._compute,
            "publish": self._publish,
            "token_seconds": self._token_seconds,
            "client_secret": self._client_secret,
            "expire_run_token": lambda job: tokens.expire(self._job(job).token),
            "expire_addresses": tokens.expire_addresses,
        }

    def __call__(self, action: str, arguments: dict[str, Any]) -> Any:
        if action not in self._actions:
            raise ServiceError(404, "UnknownAction", f"{action!r} is none of {', '.join(self._actions)}")
        return self._actions[action](**arguments)

    def _job(self, name: str) -> Job:
        if name not in self._state.jobs:
            raise ServiceError(404, "UserError", f"Run {name} was not found")
        return self._state.jobs[name]

    def _preempt(self, job: str, notice_s: float = 0.0) -> None:
        found = self._job(job)
        found.notice_s = notice_s
        self._state.ask_to_stop(found, "preempt")

    def _show(self) -> dict[str, Any]:
        with self._state.changed:
            return {
                "jobs": {
                    name: {
                        "status": job.status,
                        "history": job.history,
                        "exp": job.experiment,
                        "error": job.error,
                        "attempt": job.attempt,
                        "nodes": job.nodes,
                        "addresses": job.addresses,
                        "run_uuid": job.run_uuid,
                        "properties": job.properties,
                    }
                    for name, job in self._state.jobs.items()
                },
                "codes": [list(key) for key in self._state.codes],
                "envs": [list(key) for key in self._state.environments],
                "queue_held": self._state.queue_held,
            }

    def _secret(self, name: str, value: str) -> dict[str, str]:
        self._state.secrets[name] = value
        return {"url": f"https://{VAULT_HOST}/secrets/{name}"}

    def _hold(self, held: bool) -> None:
        with self._state.changed:
            self._state.queue_held = held
            self._state.changed.notify_all()

    def _fail_next(self, code: str, message: str, at: str = "Preparing") -> None:
        allowed = ("Starting", "Provisioning", "Preparing", "Queued", "Running")
        if at not in allowed:
            raise ValueError(f"at: {at!r} is none of {allowed}")
        with self._state.changed:
            self._state.planned_failures.append({"at": at, "code": code, "message": message})

    def _compute(self, name: str, **wanted: Any) -> None:
        with self._state.changed:
            self._state.computes[name] = Compute(**wanted)

    def _publish(self, port: int) -> dict[str, str]:
        self._state.published_port = port
        return {"url": f"https://{PUBLISHED_HOST}"}

    def _client_secret(self, value: str) -> None:
        """From now on the directory takes this one alone, and the tokens of the one before open nothing."""
        self._tokens.rotate(value)

    def _token_seconds(self, seconds: float) -> None:
        self._tokens.token_seconds = seconds

"""The parts of the stack: how each is started, and with what environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plato_core.stack.processes import mark
from plato_core.stack.settings import MLFLOW, PREFECT, PREFIX, WORK_POOL, WORKER, StackSettings

SERVERS = (PREFECT, MLFLOW)
TITLES = {PREFECT: "Prefect server", MLFLOW: "MLflow server", WORKER: "worker"}
PORT_VARIABLES = {PREFECT: f"{PREFIX}PREFECT_PORT", MLFLOW: f"{PREFIX}MLFLOW_PORT"}

# The user's own: another server's address or key, a profile, a store, a cluster, settings of a sweep. The stack's own
# variables too: secrets of one part are no other part's business.
_NOT_INHERITED = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "PLATO_", "RAY_ADDRESS")
_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",  # Prefect takes "1" too, MLflow only "true"
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Part:
    """One process that the supervisor keeps.

    Attributes:
        name: What it is called in the state and in logs.
        command: Its arguments; no secret is among them.
        environment: All of its variables.
        log: Where its output goes.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path


def parts(settings: StackSettings, environ: Mapping[str, str]) -> dict[str, Part]:
    """Returns the parts in the order of their start.

    Args:
        settings: Of the stack.
        environ: The environment of whoever starts the stack.
    """
    port = str(settings.mlflow_port)
    commands = {
        PREFECT: ["-m", "prefect", "server", "start"],
        # One uvicorn process: each costs 300 MB, and requests run in its threads.
        MLFLOW: [
            "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1",
            "--serve-artifacts", "--artifacts-destination", str(settings.folder / "artifacts"),
            "--uvicorn-opts", "--no-access-log --log-level warning",
        ],
        WORKER: ["-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", "plato"],
    }  # fmt: skip
    variables = {PREFECT: _prefect(settings), MLFLOW: _mlflow(settings), WORKER: {}}
    return {
        name: Part(
            name=name,
            command=[sys.executable, *command],
            environment=client_environment(settings, environ) | variables[name] | mark(name, settings.folder),
            log=settings.logs / f"{name}.log",
        )
        for name, command in commands.items()
    }


def client_environment(settings: StackSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with which a process talks to this stack's servers and to no other."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_NOT_INHERITED)}
    direct = ",".join(filter(None, [kept.get("no_proxy") or kept.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    return kept | _QUIET | {
        "PREFECT_HOME": str(settings.folder / "prefect"),
        "PREFECT_API_URL": settings.api_url,
        "PREFECT_WORKER_QUERY_SECONDS": "5",  # a run starts so much later than it is asked for; 10 by default
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "NO_PROXY": direct,
        "no_proxy": direct,
    }  # fmt: skip


def _prefect(settings: StackSettings) -> dict[str, str]:
    database = settings.prefect_database_url
    return {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        # Not only `--port`: the UI is told where the API is by this setting.
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        "PREFECT_SERVER_UI_API_URL": settings.api_url,
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # In memory, a restart of the server would kill each run that holds a place under a concurrency limit.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **({"PREFECT_SERVER_DATABASE_CONNECTION_URL": database.get_secret_value()} if database else {}),
    }


def _mlflow(settings: StackSettings) -> dict[str, str]:
    store = settings.mlflow_store_uri
    return {
        "MLFLOW_BACKEND_STORE_URI": store.get_secret_value() if store else settings.mlflow_database,
        # Jobs of MLflow's evaluation features: helper processes that sweeps have no use for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }

"""The job of Azure ML that this process belongs to, as its environment tells; its own run is a sweep's parent run.

Azure ML makes that run before the job starts, names it by the job and ends it with the job: nobody else does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from plato_core.aml.workspace import Workspace
from plato_core.errors import ConfigError

# What says that there is a job, and which.
VARIABLES = ("AZUREML_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
# By these MLflow, in whatever process inherits them, takes the job's run for its own and writes into it.
# Only the sweep's driver may: trials have runs of their own.
NOT_FOR_TRIALS = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_TOKEN",
    "AZUREML_RUN_TOKEN",
)


@dataclass(frozen=True)
class JobRun:
    """A job's own run.

    Attributes:
        run_id: Its id, which is the job's name.
        workspace: Where it is.
        experiment_id: Its experiment, "" if the environment does not say.
        experiment_name: That experiment's name, likewise.
    """

    run_id: str
    workspace: Workspace
    experiment_id: str
    experiment_name: str

    @classmethod
    def current(cls, environ: Mapping[str, str] | None = None) -> Self | None:
        """Return the run of the job that this process belongs to; None outside of jobs.

        Args:
            environ: By default the process's own.
        """
        environ = os.environ if environ is None else environ
        run_id, uri = environ.get("AZUREML_RUN_ID", ""), environ.get("MLFLOW_TRACKING_URI", "")
        if not run_id or not uri.startswith("azureml:"):
            return None
        try:
            workspace = Workspace.of(uri)
        except ConfigError:
            return None
        name = environ.get("MLFLOW_EXPERIMENT_NAME") or environ.get("AZUREML_ARM_PROJECT_NAME", "")
        return cls(run_id, workspace, environ.get("MLFLOW_EXPERIMENT_ID", ""), name)

    @classmethod
    def tracked_in(cls, tracking_uri: str, environ: Mapping[str, str] | None = None) -> Self | None:
        """Return the run of this process's job if a store is that of the job's workspace.

        Args:
            tracking_uri: The store.
            environ: See `current`.
        """
        job = cls.current(environ)
        if job is None or not tracking_uri.startswith("azureml:"):
            return None
        try:
            return job if _folded(Workspace.of(tracking_uri)) == _folded(job.workspace) else None
        except ConfigError:
            return None


@contextmanager
def hidden() -> Iterator[None]:
    """Take the job's run out of this process's environment for as long as it starts others that are not to know it."""
    taken = {name: value for name in NOT_FOR_TRIALS if (value := os.environ.pop(name, None)) is not None}
    try:
        yield
    finally:
        os.environ.update(taken)


def runtime_env() -> dict[str, Any] | None:
    """Return the environment for processes of a Ray that was started with the job's: there its run is nobody's.

    None outside of jobs, where there is nothing to hide.
    """
    # Ray can set a variable for its processes and not take one away; to MLflow an empty one is none.
    return None if JobRun.current() is None else {"env_vars": dict.fromkeys(NOT_FOR_TRIALS, "")}


def _folded(workspace: Workspace) -> tuple[str, ...]:
    # Azure's names do not differ by the case of their letters.
    return tuple(part.lower() for part in (workspace.subscription_id, workspace.resource_group, workspace.name))

"""Ending the MLflow runs of a sweep whose processes died and left them RUNNING."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plato_core.errors import TrackingError
from plato_core.tracking.client import make_client, redact, sqlite_path, tracking_errors
from plato_core.tracking.parent import ParentRun
from plato_core.tracking.queries import quoted

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_MOVED = "go to the folder that the sweep was started in, or remove the sweep's files"


@dataclass(frozen=True)
class LeftRun:
    """A run that is RUNNING though nobody works on it.

    Attributes:
        run_id: Its id.
        trial_id: Whose it is; None for the sweep's own.
    """

    run_id: str
    trial_id: str | None


def end_left_running(
    tracking_uri: str,
    experiment_name: str,
    sweep_id: str,
    parent: ParentRun | None,
    *,
    ended_ms: int,
    error: str | None,
    found: Callable[[list[LeftRun]], None],
) -> list[LeftRun]:
    """End the runs of one sweep that are RUNNING: they become KILLED, and the parent says why.

    Args:
        tracking_uri: The store.
        experiment_name: The sweep's experiment.
        sweep_id: The sweep; its runs are those with this tag.
        parent: The sweep's own run, if it is known which one that is.
        ended_ms: When the sweep died, in milliseconds since the epoch: the end of the runs.
        error: The tag `plato.error` of the parent; None leaves the parent alone.
        found: Called with the runs before the first of them is ended.

    Returns:
        The runs that were ended.

    Raises:
        TrackingError: The store does not answer, is not there, or is not the one that the sweep was tracked in.
    """
    database = sqlite_path(tracking_uri)
    if database is not None and not database.exists():  # MLflow would make a new one
        raise TrackingError(f"tracking store {redact(tracking_uri)}: there is no such file; {_MOVED}")
    client = make_client(tracking_uri)
    with tracking_errors(tracking_uri):
        runs = [run for run in _runs(client, experiment_name, sweep_id, parent) if run.info.status == "RUNNING"]
    if error is None:
        runs = [run for run in runs if "plato.trial_id" in run.data.tags]
    # The sweep's own last: as long as it is RUNNING, something is left to do.
    runs.sort(key=lambda run: "plato.trial_id" not in run.data.tags)
    left = [LeftRun(run.info.run_id, run.data.tags.get("plato.trial_id")) for run in runs]
    found(left)
    with tracking_errors(tracking_uri):
        for run, what in zip(runs, left, strict=True):
            if what.trial_id is None and error is not None:
                client.set_tag(what.run_id, "plato.error", error)
            client.set_terminated(what.run_id, "KILLED", max(run.info.start_time, ended_ms))
    return left


def _runs(client: MlflowClient, experiment_name: str, sweep_id: str, parent: ParentRun | None) -> list[Run]:
    from mlflow.exceptions import MlflowException

    if parent is not None:
        try:
            client.get_run(parent.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            store = redact(client.tracking_uri)
            raise TrackingError(f"tracking store {store} has no run {parent.run_id} of the sweep; {_MOVED}") from error
        experiment_id = parent.experiment_id
    else:
        experiment = client.get_experiment_by_name(experiment_name)
        if experiment is None:
            return []
        experiment_id = experiment.experiment_id
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], f"tags.plato.sweep_id = {quoted(sweep_id)}", page_token=token)
        runs += page
        if not (token := page.token):
            return runs

"""Reading runs and checkpoints from the tracking store: page by page, with filters that every store has."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import stamina

from plato_core.errors import TrackingError
from plato_core.manifest import checkpoint_name
from plato_core.selection import CheckpointRecord, RunRecord
from plato_core.tracking.artifacts import artifact_repository, checkpoint_in, is_transient
from plato_core.tracking.client import tracking_errors
from plato_core.tracking.transfer import stored_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.entities import PagedList

_PAGE = 1000
_PARALLEL = 8


def children_of(client: "MlflowClient", experiment_ids: Sequence[str], parent_run_id: str) -> list[RunRecord]:
    """Return the children of a parent run, as its sweep's trials are.

    Raises:
        TrackingError: The store refused or did not answer.
    """
    return list(iter_runs(client, experiment_ids, f"tags.mlflow.parentRunId = {quoted(parent_run_id)}"))


def iter_runs(client: "MlflowClient", experiment_ids: Sequence[str], filter_string: str = "") -> Iterator[RunRecord]:
    """Yield the runs of some experiments one by one, holding one page of the store's answer at a time.

    The order is the store's own. Sorting by a metric is left to the caller: it takes minutes in a large
    SQLite store, and Azure ML cannot do it at all.

    Args:
        client: Of the tracking store.
        experiment_ids: At least one.
        filter_string: In MLflow's search syntax.

    Raises:
        TrackingError: The store refused or did not answer.
    """
    token: str | None = None
    while True:
        page, token = runs_page(client, experiment_ids, filter_string, max_results=_PAGE, page_token=token)
        yield from page
        if not token:
            return


def runs_page(
    client: "MlflowClient",
    experiment_ids: Sequence[str],
    filter_string: str = "",
    *,
    max_results: int,
    order_by: Sequence[str] = (),
    page_token: str | None = None,
) -> tuple[list[RunRecord], str | None]:
    """Return one page of the store's answer, and the token of the next if there is one.

    Raises:
        TrackingError: The store refused or did not answer.
    """

    @stamina.retry(on=is_transient, attempts=4, timeout=60.0)
    def page() -> "PagedList[Run]":
        return client.search_runs(
            list(experiment_ids), filter_string, max_results=max_results, order_by=list(order_by), page_token=page_token
        )

    with tracking_errors(client.tracking_uri):
        found = page()
    return [_record(run) for run in found], found.token or None


def complete_checkpoints(client: "MlflowClient", run_id: str) -> list[CheckpointRecord]:
    """Return the complete checkpoints of a run, in order of their iteration.

    Complete are those whose manifest is there and can be read. One that is deleted while this looks is
    left out.

    Raises:
        TrackingError: The store did not answer, which is no reason to take a checkpoint for incomplete.
    """
    with tracking_errors(client.tracking_uri):
        repository = artifact_repository(client, run_id)
        paths = [info.path for info in _listed(repository) if info.is_dir and checkpoint_in(info.path) is not None]
        if not paths:
            return []
        with ThreadPoolExecutor(min(_PARALLEL, len(paths)), thread_name_prefix="plato-manifests") as pool:
            found = list(pool.map(lambda path: stored_manifest(repository, path), paths))
    records = {  # by iteration: a store that takes each path once may have one twice, both whole
        manifest.iteration: CheckpointRecord(run_id, manifest.iteration, path, manifest)
        for path, manifest in zip(paths, found, strict=True)
        if manifest is not None and checkpoint_in(path) == checkpoint_name(manifest.iteration)
    }
    return [records[iteration] for iteration in sorted(records)]


def quoted(value: str) -> str:
    """Return `value` as a string of MLflow's search syntax, which has no way to write a quote in one.

    Raises:
        TrackingError: It holds a quote, as no run id does.
    """
    if "'" in value or '"' in value:
        raise TrackingError(f"{value!r} cannot be searched for: it holds a quote.")
    return f"'{value}'"


@stamina.retry(on=is_transient, attempts=4, timeout=60.0)
def _listed(repository: "ArtifactRepository", path: str | None = None) -> "list[FileInfo]":
    return repository.list_artifacts(path)


def _record(run: "Run") -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or run.data.tags.get("trial_name") or run.info.run_id,
        status=run.info.status,
        start_time=run.info.start_time,
        end_time=run.info.end_time,
        metrics={name: _unclamped(value) for name, value in run.data.metrics.items()},
        params=run.data.params,
        tags=run.data.tags,
    )


def _unclamped(value: float) -> float:
    """Return an infinity that the store could not hold as what it was.

    MLflow's SQL store writes the largest finite number instead, which would win every ranking.
    """
    if abs(value) >= sys.float_info.max:
        return float("inf") if value > 0 else float("-inf")
    return value

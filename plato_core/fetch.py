"""Fetching the best checkpoint of an experiment, without the sweep that made it.

::

    from plato_core.fetch import get_top_run, list_experiments

    experiment = list_experiments()[-1].name  # the most recently active one
    top = get_top_run(experiment, "model_checkpoints", rank_metric="metrics.episode_reward_max")
"""

import contextlib
import difflib
import functools
import heapq
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import stamina

from plato_core.errors import ConfigError, SelectionError
from plato_core.reading import reading_uri
from plato_core.selection import CheckpointRecord, Mode, RunRecord, Selection, choose, rank_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

_T = TypeVar("_T")
DEFAULT_RANK_METRIC = "metrics.episode_reward_mean"
_BEST_KEPT = 100
"""How many of the best runs of an experiment are held while it is read; more if none of them qualifies."""


@dataclass(frozen=True)
class ExperimentSummary:
    """An experiment of the tracking store.

    Attributes:
        name: Its name.
        experiment_id: Its id.
        last_activity: When a run of it was last started or ended or, failing runs, when it was made; in UTC.
    """

    name: str
    experiment_id: str
    last_activity: datetime


@dataclass(frozen=True)
class TopRun(os.PathLike[str]):
    """The best run and its checkpoint on this machine; as a path, it is that checkpoint's folder.

    Attributes:
        run_id: The run's id.
        rank_value: Its latest value of the rank metric.
        checkpoint_path: The verified checkpoint, `<local_path>/<run_id>/checkpoint_NNNNNN`.
        iteration: The trial's own count when the checkpoint was written.
        warnings: What the user should know: better-ranked runs that do not qualify, a local copy replaced.
    """

    run_id: str
    rank_value: float
    checkpoint_path: Path
    iteration: int
    warnings: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return str(self.checkpoint_path)

    def __str__(self) -> str:
        return str(self.checkpoint_path)


def list_experiments(
    *, tracking_uri: str | None = None, workspace_config: str | os.PathLike[str] | None = None
) -> list[ExperimentSummary]:
    """Return the experiments of the tracking store in order of their last activity, the newest last.

    Args:
        tracking_uri: See `plato_core.reading.reading_uri`.
        workspace_config: See `plato_core.reading.reading_uri`.

    Raises:
        ConfigError: The store is a file that does not exist.
        TrackingError: The store did not answer.
    """
    from plato_core.tracking.client import tracking_errors

    client = _reader(tracking_uri, workspace_config)
    with tracking_errors(client.tracking_uri):
        summaries = [_summary(client, experiment) for experiment in _experiments(client)]
    return sorted(summaries, key=lambda summary: (summary.last_activity, summary.experiment_id))


def get_top_run(
    experiment: str,
    local_path: str | os.PathLike[str] = "model_checkpoints",
    rank_metric: str = DEFAULT_RANK_METRIC,
    *,
    mode: Mode = "max",
    parent_run_id: str | None = None,
    tracking_uri: str | None = None,
    workspace_config: str | os.PathLike[str] | None = None,
) -> TopRun:
    """Download the best checkpoint of the best run of an experiment, and verify it.

    It selects, verifies and downloads as the sweep's own flow does: the run must be FINISHED, with a finite
    rank value and a complete checkpoint, and must be a trial of a sweep, that is a child run.

    Args:
        experiment: Its name.
        local_path: A folder of results; the checkpoint lands in `<local_path>/<run_id>/checkpoint_NNNNNN`.
        rank_metric: With or without the prefix `metrics.`.
        mode: Whether a high (`max`) or a low (`min`) value is good.
        parent_run_id: Look only among the trials of this sweep.
        tracking_uri: See `plato_core.reading.reading_uri`.
        workspace_config: See `plato_core.reading.reading_uri`.

    Raises:
        ConfigError: The experiment, the sweep or the store does not exist, or `local_path` cannot be used.
        SelectionError: No run qualifies.
        CheckpointError: The checkpoint in the store is damaged.
        TrackingError: The store did not answer.
    """
    from plato_core.tracking.transfer import download_checkpoint

    client = _reader(tracking_uri, workspace_config)
    experiment_id = _experiment_id(client, experiment)
    if parent_run_id is None:
        selection = best_of_experiment(client, experiment, experiment_id, rank_metric, mode)
    else:
        selection = best_of_sweep(client, experiment_id, parent_run_id, rank_metric, mode)
    chosen = selection.checkpoint
    downloaded = download_checkpoint(client, chosen.run_id, chosen.artifact_path, local_path, chosen.manifest)
    warnings = list(selection.warnings)
    if downloaded.replaced is not None:
        warnings.append(
            f"{downloaded.path} did not match its manifest: it was moved to {downloaded.replaced} and downloaded again."
        )
    return TopRun(chosen.run_id, selection.rank_value, downloaded.path, chosen.iteration, tuple(warnings))


def _reader(tracking_uri: str | None, workspace_config: str | os.PathLike[str] | None) -> "MlflowClient":
    uri = reading_uri(tracking_uri, workspace_config=workspace_config)
    from plato_core.tracking.client import make_client

    return make_client(uri)


def best_of_sweep(
    client: "MlflowClient", experiment_id: str, parent_run_id: str, rank_metric: str, mode: Mode
) -> Selection:
    """Choose among the trials of a sweep.

    Raises:
        SelectionError: No run qualifies.
        TrackingError: The store did not answer.
    """
    from plato_core.tracking.queries import children_of, complete_checkpoints

    children = children_of(client, [experiment_id], parent_run_id)
    checkpoints_of = functools.partial(complete_checkpoints, client)
    among = f"the children of run {parent_run_id}"
    return choose(children, rank_metric, mode, checkpoints_of, among=among)


def best_of_experiment(
    client: "MlflowClient", name: str, experiment_id: str, rank_metric: str, mode: Mode
) -> Selection:
    """Choose among all trials of an experiment while holding only the best of them.

    First among those that lead it, which takes a few questions however many there are; all are read only if none of
    those qualifies.

    Raises:
        SelectionError: No run qualifies.
        TrackingError: The store did not answer.
    """
    from plato_core.tracking.leading import leading_runs
    from plato_core.tracking.queries import complete_checkpoints, iter_runs

    @functools.cache
    def checkpoints_of(run_id: str) -> list[CheckpointRecord]:
        return complete_checkpoints(client, run_id)

    among = f"the trials of experiment {name!r}"
    for leading in leading_runs(client, experiment_id, rank_metric, mode):
        best, total = best_candidates(leading, rank_metric, mode, _BEST_KEPT)
        with contextlib.suppress(SelectionError):
            return choose(best, rank_metric, mode, checkpoints_of, among=among, total=total)
    kept = _BEST_KEPT
    while True:
        trials = (run for run in iter_runs(client, [experiment_id]) if run.parent_run_id is not None)
        best, total = best_candidates(trials, rank_metric, mode, kept)
        try:
            return choose(best, rank_metric, mode, checkpoints_of, among=among, total=total)
        except SelectionError:
            if len(best) == total or sum(run.status == "FINISHED" for run in best) < kept:
                raise
            kept *= 10


def best_candidates(runs: Iterable[RunRecord], rank_metric: str, mode: Mode, limit: int) -> tuple[list[RunRecord], int]:
    """Return what selection needs to see of many runs, and how many there were.

    That is the best `limit` FINISHED runs, the best `limit` of the others (to be warned of), and a few of
    those without a finite rank value (to be named if nothing qualifies). Memory stays at that many runs.
    """
    count = 0
    finished: list[_Ranked] = []
    others: list[_Ranked] = []
    unranked: list[RunRecord] = []
    for run in runs:
        count += 1
        key = rank_key(run, rank_metric, mode)
        if key is None:
            if len(unranked) < min(limit, 10):
                unranked.append(run)
            continue
        heap = finished if run.status == "FINISHED" else others
        if len(heap) < limit:
            heapq.heappush(heap, _Ranked(key, run))
        else:
            heapq.heappushpop(heap, _Ranked(key, run))
    return [ranked.run for ranked in sorted(finished + others, reverse=True)] + unranked, count


@functools.total_ordering
@dataclass(frozen=True, eq=False)
class _Ranked:
    """A run in a heap whose smallest element is the worst."""

    key: tuple[float, float, str]
    run: RunRecord

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ranked) and self.key == other.key

    def __lt__(self, other: "_Ranked") -> bool:
        return self.key > other.key


def _experiment_id(client: "MlflowClient", name: str) -> str:
    from plato_core.tracking.client import redact, tracking_errors

    with tracking_errors(client.tracking_uri):
        found = _patiently(client.get_experiment_by_name, name)
        if found is not None:
            return found.experiment_id
        names = [experiment.name for experiment in _experiments(client)]
    near = difflib.get_close_matches(name, names, n=3) or sorted(names)[:10]
    hint = f"Near or known: {', '.join(near)}." if near else "It has no experiments yet."
    raise ConfigError(f"There is no experiment {name!r} in {redact(client.tracking_uri)}. {hint}")


def _patiently(ask: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """Return what a store answers, asked again where it did not answer as it should."""
    from plato_core.tracking.artifacts import is_transient

    for attempt in stamina.retry_context(on=is_transient, attempts=4, timeout=60.0):
        with attempt:
            return ask(*arguments, **options)
    raise AssertionError("the last attempt returns or raises")


def _experiments(client: "MlflowClient") -> "Iterable[Experiment]":
    token: str | None = None
    while True:
        page = _patiently(client.search_experiments, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _summary(client: "MlflowClient", experiment: "Experiment") -> ExperimentSummary:
    # `last_update_time` is when the experiment itself was changed, and Azure ML need not have it.
    started = _latest_run(client, experiment, "start_time")
    moments = [experiment.creation_time, started and started.info.start_time, started and started.info.end_time]
    if started is not None:
        ended = _latest_run(client, experiment, "end_time")
        moments.append(ended and ended.info.end_time)
    latest = max((moment for moment in moments if moment), default=0)
    return ExperimentSummary(experiment.name, experiment.experiment_id, datetime.fromtimestamp(latest / 1000, UTC))


def _latest_run(client: "MlflowClient", experiment: "Experiment", by: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    from plato_core.tracking.artifacts import is_transient

    try:
        order = [f"attributes.{by} DESC"]
        found = _patiently(client.search_runs, [experiment.experiment_id], order_by=order, max_results=1)
    except MlflowException as error:
        if by == "start_time" or is_transient(error):
            raise
        return None  # a store that sorts by the start only
    return next(iter(found), None)

"""The sweep's progress and summary in its MLflow parent run."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from plato_core.config import SweepConfig
from plato_core.report.facts import Snapshot
from plato_core.report.markdown import note
from plato_core.tracking.artifacts import put_file
from plato_core.tracking.client import make_client, tracking_errors
from plato_core.tracking.parent import ParentRun

NAME = "the parent run in MLflow"
EVERY_S = 10.0
PROGRESS_TAG = "plato.progress"
NOTE_TAG = "mlflow.note.content"  # which MLflow's UI shows as the run's description
# MLflow takes tags of 8000 characters, older servers of 5000, Azure ML of 1000.
_LONGEST_NOTE = 4500
_LONGEST_NOTE_AZURE = 1000
_LONGEST_TAG = 500


@contextmanager
def following(config: SweepConfig, opened: ParentRun, look: Callable[[], Snapshot]) -> Iterator[Callable[[], None]]:
    """Open what writes a running sweep's figures, for a `Publisher`.

    The metrics `progress` and `best_<metric>` are series over the furthest trial's iteration, one point each; those of
    a sweep that goes on go on too.

    Args:
        config: The sweep's.
        opened: Its parent run.
        look: Returns its state.
    """
    logged: int | None = None if config.resume is not None else 0

    def send() -> None:
        nonlocal logged
        if logged is None:
            logged = _last_step(config, opened)
        snapshot = look()
        step = snapshot.iteration
        log(config, opened, snapshot, with_metrics=step > logged or snapshot.ended is not None)
        logged = max(logged, step)

    yield send


def _last_step(config: SweepConfig, opened: ParentRun) -> int:
    """The last step that an earlier attempt of the sweep has written."""
    with tracking_errors(config.store_uri):
        points = make_client(config.store_uri).get_metric_history(opened.run_id, "progress")
    return max((point.step for point in points), default=0)


def log(config: SweepConfig, opened: ParentRun, snapshot: Snapshot, *, with_metrics: bool) -> None:
    """Write the headline, the description and, if asked for, a point of each series in one request.

    Raises:
        TrackingError: The store does not answer or refuses.
    """
    client = make_client(config.store_uri)
    longest = _LONGEST_NOTE_AZURE if config.store_uri.startswith("azureml") else _LONGEST_NOTE
    tags = {PROGRESS_TAG: snapshot.headline[:_LONGEST_TAG], NOTE_TAG: note(snapshot, longest)}
    values = {"progress": snapshot.fraction}
    if snapshot.best is not None:
        values[f"best_{snapshot.facts.metric}"] = snapshot.best.value
    now_ms = time.time_ns() // 1_000_000
    with tracking_errors(config.store_uri):
        from mlflow.entities import Metric, RunTag

        client.log_batch(
            opened.run_id,
            metrics=[Metric(name, value, now_ms, snapshot.iteration) for name, value in values.items()]
            if with_metrics
            else [],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )


@contextmanager
def summarizing(
    config: SweepConfig, opened: ParentRun, snapshot: Snapshot, files: Sequence[Path]
) -> Iterator[Callable[[], None]]:
    """Open what adds the summary of a sweep that has ended, for a `Publisher`.

    Args:
        config: The sweep's.
        opened: Its parent run.
        snapshot: Its last state, for the description.
        files: Artifacts for the run.
    """

    def send() -> None:
        log(config, opened, snapshot, with_metrics=False)
        client = make_client(config.store_uri)
        with tracking_errors(config.store_uri):
            for file in files:
                put_file(client, opened.run_id, file)

    yield send

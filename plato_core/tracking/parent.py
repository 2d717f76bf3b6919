"""The sweep's own run, the parent of its trials' runs. Used by the flow's tasks."""

import contextlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import stamina

from plato_core.errors import TrackingError
from plato_core.tracking.artifacts import is_transient, put_file, put_text
from plato_core.tracking.azure import is_azure
from plato_core.tracking.client import make_client, never_repeated, redact, sqlite_path, tracking_errors
from plato_core.tracking.spool import Spool, Target

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_PARAMS = 200  # Azure ML refuses more
MAX_PARAM_LENGTH = 500
_PARAMS_A_REQUEST = 100
_PARAM_NAME = re.compile(r"[\w./ :-]{1,250}")
_TAGS_OF_THE_END = ("plato.error", "plato.top_run_id", "plato.checkpoint")
# In the spool, beside the trials' ids.
_PARENT_KEY = "parent"


@dataclass(frozen=True)
class ParentRun:
    """The sweep's run.

    Attributes:
        run_id: Its id.
        experiment_id: The experiment that it and its children are in.
        artifact_uri: Where its artifacts are.
    """

    run_id: str
    experiment_id: str
    artifact_uri: str


def open_parent(
    tracking_uri: str,
    experiment_name: str,
    run_name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    artifact_location: str | None = None,
    texts: Mapping[str, str] | None = None,
    run_id: str | None = None,
    again: bool = False,
) -> ParentRun:
    """Create the sweep's run, and its experiment if there is none of that name; or take one that is there.

    Args:
        tracking_uri: The store.
        experiment_name: The experiment.
        run_name: The run's name.
        tags: Its tags.
        params: Its params: the first 200 whose names MLflow takes, values cut at 500 characters.
        artifact_location: Where the artifacts of a new experiment go. Default: what the server says; for a
            SQLite file, ``mlruns/`` beside it, where a bare ``mlflow ui`` in that folder shows them.
        texts: Artifacts of the run, such as ``config.yaml``: name to content.
        run_id: A job's own run, which Azure ML made and will end; it stays in its experiment.
        again: Whether this was tried before and may have left the run behind, which is taken then.

    Raises:
        TrackingError: The store does not answer or refuses, or the experiment is deleted.
    """
    client = make_client(tracking_uri)
    with tracking_errors(tracking_uri):
        from mlflow.entities import Param, RunTag

        if run_id is None:
            experiment_id = _experiment(tracking_uri, experiment_name, artifact_location)
            run = _create_run(client, experiment_id, run_name, tags, again)
            if run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = client.get_run(run_id)
            experiment_id = run.info.experiment_id
            client.set_tag(run_id, "mlflow.runName", run_name)  # its name cannot be set otherwise
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        opened = ParentRun(run.info.run_id, experiment_id, str(run.info.artifact_uri))
        named = [(k, v) for k, v in params.items() if _PARAM_NAME.fullmatch(k)]
        items = [Param(k, str(v)[:MAX_PARAM_LENGTH]) for k, v in named[:MAX_PARAMS]]
        try:
            for start in range(0, len(items), _PARAMS_A_REQUEST):
                client.log_batch(opened.run_id, params=items[start : start + _PARAMS_A_REQUEST])
            for name, text in (texts or {}).items():
                put_text(client, opened.run_id, text, name)
        except BaseException as error:
            # Nobody else knows of a new run yet, and one that stays RUNNING is there for good.
            if run_id is None:
                with contextlib.suppress(Exception):
                    client.set_terminated(opened.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
    return opened


def reopen_parent(tracking_uri: str, opened: ParentRun) -> None:
    """Take a sweep's run up again: it is RUNNING, and what it came to before is taken back.

    Raises:
        TrackingError: The store does not answer, or does not know the run.
    """
    from mlflow.exceptions import MlflowException

    client = make_client(tracking_uri)
    with tracking_errors(tracking_uri):
        tags = client.get_run(opened.run_id).data.tags
        try:
            client.update_run(opened.run_id, status="RUNNING")
        except MlflowException as error:
            # Azure ML may not let a job's run that has ended be RUNNING again; its trials go on all the same.
            if not is_azure(tracking_uri) or is_transient(error):
                raise
        for name in _TAGS_OF_THE_END:
            if name in tags and is_azure(tracking_uri):
                client.set_tag(opened.run_id, name, "")
            elif name in tags:
                client.delete_tag(opened.run_id, name)


def find_parent(tracking_uri: str, experiment_name: str, sweep_id: str) -> ParentRun | None:
    """Return the run of a sweep that was killed before it could write down which run it has; None if it has none.

    Raises:
        TrackingError: The store does not answer.
    """
    client = make_client(tracking_uri)
    with tracking_errors(tracking_uri):
        experiment = client.get_experiment_by_name(experiment_name)
        if experiment is None:
            return None
        of_sweep = f"tags.plato.sweep_id = '{sweep_id}' and tags.plato.kind = 'sweep'"
        found = client.search_runs([experiment.experiment_id], of_sweep, max_results=1)
    run = next(iter(found), None)
    return None if run is None else ParentRun(run.info.run_id, experiment.experiment_id, str(run.info.artifact_uri))


def leave_to_flush(
    spool_dir: Path,
    target: Target,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    *,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    files: Sequence[Path],
    step: int = 0,
    end: bool = True,
) -> None:
    """Leave the end of the parent run to ``plato flush``, because the store is away.

    Args:
        spool_dir: The sweep's spool; made if the trials left none.
        target: Where it is sent to; names the parent run.
        status: How the run ended.
        tags: Its last tags.
        metrics: Its last metrics.
        files: Its last artifacts.
        step: Of the metrics.
        end: Whether the run is ended; a job's own run is not, as Azure ML does so.

    Raises:
        TrackingError: Another process sends from the spool.
    """
    spool = Spool.create(spool_dir, target)
    spool.runs.record(_PARENT_KEY).run_id = target.parent_run_id
    spool.runs.save()
    now_ms = _now_ms()
    append = spool.journal.append
    append({"op": "tags", "key": _PARENT_KEY, "values": dict(tags)})
    append({"op": "metrics", "key": _PARENT_KEY, "step": step, "time": now_ms, "values": dict(metrics)})
    for file in files:
        shutil.copyfile(file, held := spool.held(_PARENT_KEY, file.name))
        append({"op": "file", "key": _PARENT_KEY, "path": spool.relative(held)})
    if end:
        append({"op": "status", "key": _PARENT_KEY, "status": status, "time": now_ms})
    spool.close()


def forget_left_end(spool: Spool) -> None:
    """Drop an end that was left to ``plato flush`` and not sent: the sweep goes on.

    Args:
        spool: The sweep's, from which nothing is being sent yet.
    """
    for number, op in list(spool.journal.unfinished()):
        if op.get("key") == _PARENT_KEY:
            spool.journal.done([number])
            if "path" in op:
                spool.release(op["path"])
    spool.journal.commit()


def upload_lineage(tracking_uri: str, run_id: str, path: Path) -> None:
    """Upload ``lineage.jsonl`` to the parent run.

    Raises:
        TrackingError: The store does not answer or refuses, or the file is missing.
    """
    client = make_client(tracking_uri)
    with tracking_errors(tracking_uri):
        put_file(client, run_id, path)


def close_parent(
    tracking_uri: str,
    run_id: str,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    *,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    step: int = 0,
    end: bool = True,
    time_ms: int | None = None,
) -> None:
    """End the parent run, with last tags and metrics.

    Args:
        tracking_uri: The store.
        run_id: The parent run's.
        status: How it ended.
        tags: Last tags.
        metrics: Last metrics.
        step: Of the metrics. What MLflow shows as a metric's value is that of the highest step, the latest of equals.
        end: Whether it is ended; a job's own run is not, as Azure ML does so.
        time_ms: Of the metrics, Unix time; now by default. The same again, and what arrived before is not doubled.

    Raises:
        TrackingError: The store does not answer or refuses.
    """
    client = make_client(tracking_uri)
    at_ms = _now_ms() if time_ms is None else time_ms
    with tracking_errors(tracking_uri):
        from mlflow.entities import Metric, RunTag

        points = [Metric(name, number, at_ms, step) for name, number in (metrics or {}).items()]
        if points or tags:
            client.log_batch(run_id, points, tags=[RunTag(name, value) for name, value in (tags or {}).items()])
        if end:
            client.set_terminated(run_id, status=status)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _create_run(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str], tried: bool) -> "Run":
    """Create the run; where that was tried and the answer was lost, the run that was created all the same is taken."""
    sweep_id = tags.get("plato.sweep_id")
    for attempt in stamina.retry_context(on=is_transient, attempts=3, timeout=30.0):
        with attempt:
            of_sweep = f"tags.plato.sweep_id = '{sweep_id}' and tags.plato.kind = 'sweep'"
            if tried and sweep_id and (found := client.search_runs([experiment_id], of_sweep, max_results=1)):
                return found[0]
            tried = True
            with never_repeated():
                return client.create_run(experiment_id, tags=dict(tags), run_name=name)
    raise AssertionError("the last attempt returns or raises")


def _experiment(tracking_uri: str, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    client = make_client(tracking_uri, check=False)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        database = sqlite_path(tracking_uri)
        if artifact_location is None and database is not None:
            artifact_location = str(database.parent / "mlruns" / quote(name, safe=""))
        try:
            return client.create_experiment(name, artifact_location)
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # another sweep may have been a moment faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} is deleted in {redact(tracking_uri)}; restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, "
            "or choose another --experiment-name"
        )
    return experiment.experiment_id

"""Opening and closing the sweep's own MLflow run."""

from __future__ import annotations

import itertools
import platform
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from pydantic import JsonValue

from plato_core.aml.jobrun import JobRun
from plato_core.closing import forget_closing
from plato_core.config import SweepConfig
from plato_core.errors import TrackingError
from plato_core.resuming import read_parent, write_parent
from plato_core.sweep.execution import SweepExecution
from plato_core.sweep.folder import forget_done
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.tracking import jobs, parent
from plato_core.tracking.azure import is_azure
from plato_core.tracking.patience import within
from plato_core.tracking.spool import Target
from tasks.retries import DELAY_S, patiently, store_may_come_back

# How long a sweep that was told to stop waits for a store that hangs: somebody waits for its end. A workspace's job
# takes as long to end, and the answers that its client asks for again come after pauses.
STOPPED_LIMIT_S, STOPPED_AZURE_LIMIT_S = 5.0, 60.0
VERSIONED = ("plato-sweeps", "ray", "mlflow", "prefect", "torch", "gymnasium", "numpy")


@task(
    name="take over from the job before",
    retries=2,
    retry_delay_seconds=DELAY_S,
    retry_condition_fn=store_may_come_back,
    cache_policy=NO_CACHE,
)
def take_over_sweep(config: SweepConfig, job: JobRun, patience_s: float = 0.0) -> None:
    """Waits until no other job of Azure ML works on a sweep that goes on; from then on it is this job's.

    A file system between jobs may have no locks. So it comes before anything in the sweep's folder is touched.

    Args:
        config: The resolved config.
        job: This process's.
        patience_s: How long a store that is away or throttles is waited for.

    Raises:
        ConfigError: Another job still works on the sweep.
        TrackingError: The store does not answer.
    """
    sweep_id = config.resume
    assert sweep_id is not None

    def take_over() -> None:
        if (before := _parent_before(config, sweep_id)) is not None:
            jobs.take_over(config.store_uri, before, job, get_run_logger().info)

    patiently(take_over, patience_s)


@task(
    name="open the parent run",
    task_run_name="open the parent run of {sweep_id}",
    retries=2,
    retry_delay_seconds=DELAY_S,
    retry_condition_fn=store_may_come_back,
    cache_policy=NO_CACHE,
)
def open_parent_run(config: SweepConfig, sweep_id: str, patience_s: float = 0.0) -> parent.ParentRun:
    """Creates the run that the trials' runs are children of; it records the resolved config and where it ran.

    A sweep that goes on takes its own up again. In a job of Azure ML it is the job's own run, in the job's experiment;
    a later job has called `take_over_sweep` before.

    Args:
        config: The resolved config.
        sweep_id: The sweep's name.
        patience_s: How long a store that is away or throttles is waited for.
    """
    tries = itertools.count(task_run.run_count or 1)
    opened = patiently(lambda: _open(config, sweep_id, again=next(tries) > 1), patience_s)
    write_parent(config.storage_folder / sweep_id, opened)
    return opened


def _open(config: SweepConfig, sweep_id: str, *, again: bool) -> parent.ParentRun:
    sweep_dir = config.storage_folder / sweep_id
    job = JobRun.tracked_in(config.store_uri)
    before = None
    if config.resume is not None:
        forget_closing(sweep_dir)
        forget_done(sweep_dir)
        before = _parent_before(config, sweep_id)
    if before is not None:
        parent.reopen_parent(config.store_uri, before)
        return before
    shown = config.model_copy(update={"job_variables": _without_env(config.job_variables)})
    return parent.open_parent(
        config.store_uri,
        config.experiment_name,
        run_name=f"{config.algorithm} {config.env_name} x{config.num_tune_samples} {sweep_id}",
        tags=_tags(config, sweep_id, job),
        params=_params(config),
        artifact_location=None if config.artifact_root is None else str(config.artifact_root),
        texts={"config.yaml": shown.to_yaml()},
        run_id=None if job is None else job.run_id,
        again=again,
    )


def close_parent_run(
    config: SweepConfig,
    process: SweepExecution,
    opened: parent.ParentRun,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    *,
    tags: dict[str, str] | None = None,
    metrics: dict[str, float] | None = None,
    step: int = 0,
    patience_s: float = 0.0,
) -> str | None:
    """Adds the lineage to the parent run and ends it; while the store is away, `plato flush` does so later.

    Args:
        config: The resolved config.
        process: The sweep.
        opened: The parent run.
        status: How it ended. If it is KILLED, the store has not long for it.
        tags: Last tags.
        metrics: Last metrics.
        step: Of the metrics; where the sweep's own series ended, to be the last values of those too.
        patience_s: How long a store that is away or throttles is waited for first.

    Returns:
        None, or what is left to do where the store is away.
    """
    job = JobRun.tracked_in(config.store_uri)
    ours = job is None or job.run_id != opened.run_id
    lineage, time_ms = process.lineage(), time.time_ns() // 1_000_000

    def upload() -> None:
        if lineage is not None:
            parent.upload_lineage(config.store_uri, opened.run_id, lineage)

    def end() -> None:
        parent.close_parent(
            config.store_uri, opened.run_id, status, tags=tags, metrics=metrics, step=step, end=ours, time_ms=time_ms
        )

    def close() -> None:
        # An upload hangs sooner than a request: the run of a sweep that is stopped is not to stay RUNNING for it.
        for part in (end, upload) if status == "KILLED" else (upload, end):
            part()

    try:
        if status == "KILLED":
            within(STOPPED_AZURE_LIMIT_S if is_azure(config.store_uri) else STOPPED_LIMIT_S, close)
        else:
            patiently(close, patience_s)
    except TrackingError as error:
        process.close()  # which sends from the spool as long as it lives
        spool = process.sweep_dir / TRACKING_FOLDER
        target = Target(
            tracking_uri=config.store_uri,
            experiment_id=opened.experiment_id,
            parent_run_id=opened.run_id,
            sweep_id=process.sweep_id,
            keep_checkpoints=config.keep_checkpoints,
            mode=config.mode,
        )
        with suppress(TrackingError):  # the trials' writer hangs in a request; what it has is in the spool
            parent.leave_to_flush(
                spool,
                target,
                status,
                tags=tags or {},
                metrics=metrics or {},
                files=[lineage] if lineage else [],
                step=step,
                end=ours,
            )
        way_out = f"plato flush {spool} does so" if job is None else "it is when the sweep goes on"
        return f"the parent run is not complete ({error}); {way_out}"
    return None


def _parent_before(config: SweepConfig, sweep_id: str) -> parent.ParentRun | None:
    sweep_dir = config.storage_folder / sweep_id
    return read_parent(sweep_dir) or parent.find_parent(config.store_uri, config.experiment_name, sweep_id)


def _tags(config: SweepConfig, sweep_id: str, job: JobRun | None) -> dict[str, str]:
    tags = {
        "plato.sweep_id": sweep_id,
        "plato.kind": "sweep",
        "plato.seed": str(config.seed),
        "plato.version.python": platform.python_version(),
    }
    if job is None:
        tags |= {"mlflow.source.name": "plato sweep", "mlflow.source.type": "LOCAL"}
    else:  # Azure ML has said where its own run comes from
        tags[jobs.JOB_TAG] = job.run_id
    for package in VERSIONED:
        try:
            tags[f"plato.version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    if (commit := _git_commit()) is not None:
        tags["mlflow.source.git.commit"] = commit
    return tags


def _params(config: SweepConfig) -> dict[str, object]:
    """The resolved config, flat: what the population was drawn from rather than any one trial's values."""
    settings = config.flow_parameters()
    del settings["resume"]
    settings["job_variables"] = _without_env(settings["job_variables"]) or None
    nested = {name: settings.pop(name) for name in ("hyperparameters", "mutations", "env_config")}
    params: dict[str, object] = {name: value for name, value in settings.items() if value is not None}
    for name, values in nested.items():
        params |= {f"{name}.{key}": value for key, value in values.items()}
    return params


def _without_env(job_variables: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A job's environment is for the job alone: what somebody has put there may be no secret, and yet not for all."""
    return {name: value for name, value in job_variables.items() if name != "env"}


def _git_commit() -> str | None:
    """The commit of this project's checkout, wherever the sweep is started from."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        asked = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None

"""Running the sweep, in its own process."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, task
from prefect.context import TaskRunContext

from plato_core.config import SweepConfig
from plato_core.errors import SweepError
from plato_core.report.facts import Snapshot
from plato_core.report.progress import SweepProgress
from plato_core.report.sinks import reporting
from plato_core.sweep.events import SweepEnded
from plato_core.sweep.execution import SweepExecution
from plato_core.sweep.protocol import Go
from plato_core.tracking.parent import ParentRun


def _once_a_flow_run(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """By what a flow run that is tried again knows the result of its sweep; a sweep begun anew is another."""
    return f"plato-sweep-{context.task_run.flow_run_id}-{parameters['opened'].run_id}"


@task(
    name="run the sweep",
    task_run_name="train {config.num_tune_samples} x {config.algorithm} on {config.env_name}",
    cache_key_fn=_once_a_flow_run,
    persist_result=True,
)
def run_sweep(config: SweepConfig, process: SweepExecution, opened: ParentRun, progress: SweepProgress) -> Snapshot:
    """Lets the sweep train, follows it to its end, and ends it in order if this task is told to stop.

    Never retried blindly: a sweep is paid for. Once done, it is done for its flow run: Prefect keeps the result, and
    when the run is tried again, neither Ray nor the sweep's process is started. The tasks around it are cheap and
    need no such memory: each finds what it did before in the store or on disk, and looks whether that still holds.

    Args:
        config: The resolved config.
        process: The sweep, whose process has loaded Ray meanwhile; or which becomes a job of Azure ML.
        opened: The parent run.
        progress: The sweep's state, kept up to date here; still there for the caller if this fails.

    Returns:
        The last that was seen of it; `ended` is there.

    Raises:
        SweepError: The sweep failed.
        SweepStopped: It was told to stop.
    """
    process.go(
        Go(
            tracking_uri=config.store_uri,
            experiment_id=opened.experiment_id,
            parent_run_id=opened.run_id,
        )
    )
    with reporting(config, opened, progress, get_run_logger()) as report:
        ended: SweepEnded | None = None
        try:
            for event in process.events():
                report.update(event)
                if isinstance(event, SweepEnded):
                    ended = event
        except (Exception, GeneratorExit):
            raise
        except BaseException:  # Ctrl-C, and Prefect's word that the run is cancelled or out of time
            try:
                for event in process.stop():
                    report.update(event)
            finally:
                process.close()  # at once: the stores, which are told of the end next, may take their time
            raise
    if ended is None:
        raise SweepError(f"sweep {process.sweep_id} ended without a word")
    return progress.snapshot()

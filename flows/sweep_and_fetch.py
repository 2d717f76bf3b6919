"""The flow `sweep`: train a population, pick the best policy, fetch its verified checkpoint.

As a script, `python flows/sweep_and_fetch.py --help` is its command line; imported, it only defines the flow.
"""

if __name__ == "__main__":
    # Before anything below: help and mistakes in the input need no Prefect, which takes seconds to load.
    from plato_core.cli import sweep_main

    raise SystemExit(sweep_main())

import os
import signal
import time
from collections.abc import Mapping

from prefect import flow
from prefect.context import TagsContext
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed

from plato_core.aml.jobrun import JobRun
from plato_core.aml.sweepsettings import tracked
from plato_core.config import SweepConfig
from plato_core.config_form import from_form
from plato_core.config_machine import check_machine
from plato_core.errors import PlatoError, SweepStopped, Terminated
from plato_core.executions import adopt, is_prepared
from plato_core.flow_signature import with_fields_as_parameters
from plato_core.report.markdown import shown_checkpoint
from plato_core.report.progress import SweepProgress
from plato_core.report.sinks import facts_of
from plato_core.report.summary import failure_words
from plato_core.result import SweepResult
from plato_core.resuming import note_flow_run, read_parent, resume_command
from plato_core.sweep.execution import SweepExecution
from plato_core.sweep.folder import record_done
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.tracking.parent import ParentRun
from plato_core.tracking.patience import patience_s as patience_of
from tasks.alive import outlives_its_worker, stays_running
from tasks.checkpoint import download_checkpoint, remarks
from tasks.closing import close_left_behind
from tasks.form import deployment_parameters
from tasks.leases import sweeps_outlive_leases
from tasks.naming import FLOW_NAME, flow_run_name, tag_flow_run
from tasks.parent_run import close_parent_run, open_parent_run, take_over_sweep
from tasks.prune import prune_old_sweeps
from tasks.retries import patiently
from tasks.retrying import begun_before
from tasks.selection import select_top_run
from tasks.summary import STOPPED_PATIENCE_S, write_summary
from tasks.sweep import run_sweep

sweeps_outlive_leases()


@flow(
    name=FLOW_NAME,
    flow_run_name=flow_run_name,
    description="Train a population, pick the best policy, fetch its verified checkpoint.",
)
@with_fields_as_parameters(SweepConfig)
def sweep(**parameters: object) -> SweepResult:
    """Runs one sweep from its parent run to a verified checkpoint on this machine."""
    began = time.monotonic()
    if deployment.id is not None:  # a worker has started this process
        outlives_its_worker()
    try:
        config = _checked(parameters)
        if config.resume is not None and (job := JobRun.tracked_in(config.store_uri)) is not None:
            # Before anything in the sweep's folder is touched.
            take_over_sweep(config, job, patience_of(config.store_uri))
        process = adopt(config)
    except PlatoError as error:
        return _failed(error)
    with process, stays_running(), TagsContext(current_tags=set()):  # see `tag_flow_run`
        prunes = config.prune_after_days is not None or config.prune_keep is not None
        if prunes and config.resume is None:  # one is at it already, and the next night is soon enough
            prune_old_sweeps(config.storage_folder, config.prune_after_days, config.prune_keep)
        note_flow_run(process.sweep_dir, str(flow_run.id))
        tag_flow_run(config, f"sweep:{process.sweep_id}")
        progress = SweepProgress(facts_of(config))
        opened = None
        try:
            opened = open_parent_run(config, process.sweep_id, patience_of(config.store_uri))
            # Not before: two threads that import MLflow break each other's import.
            close_left_behind(config.storage_folder)
            result = _sweep(config, process, opened, progress, began)
        except Exception as error:
            status = "KILLED" if isinstance(error, SweepStopped) else "FAILED"
            if opened is not None:
                close_parent_run(config, process, opened, status, tags={"plato.error": str(error)[:500]})
                write_summary(config, opened, progress, process.sweep_dir, error=str(error))
            if isinstance(error, SweepStopped):
                return _cancelled(error, process)
            if isinstance(error, PlatoError):
                return _failed(error)
            raise
        except BaseException as error:  # Ctrl-C, SIGTERM, and Prefect's word that the run is cancelled
            # The task that opens it may just have been at its end.
            if (opened := opened or read_parent(process.sweep_dir)) is not None:
                close_parent_run(config, process, opened, "KILLED")
                # Not as a task: this run may start none any more.
                why, limit_s = "the sweep was stopped", STOPPED_PATIENCE_S
                write_summary.fn(config, opened, progress, process.sweep_dir, error=why, patience_s=limit_s)
            if (stopped := _stopped(error)) is None:
                raise
            return _cancelled(stopped, process)
    best = f"{result.rank_metric} {result.rank_value:g}"
    message = f"{result.winner}: {best} at iteration {result.checkpoint_iteration}; {shown_checkpoint(result)}"
    return Completed(message=message, data=result)  # type: ignore[return-value]  # Prefect returns what is in it


def _failed(error: PlatoError) -> SweepResult:
    """The end of a run by an error that is no bug: its state says what and how to mend it, without a traceback."""
    message = " ".join(str(error).split())
    get_run_logger().error(message)
    return Failed(message=message, data=error)  # type: ignore[return-value]  # Prefect raises what is in it


def _stopped(error: BaseException) -> SweepStopped | None:
    """What told the run to stop; None where it is to end in another state than Cancelled."""
    if isinstance(error, TerminationSignal | Terminated):
        # There Prefect itself sets the run to AwaitingRetry.
        rescheduled = "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR" in os.environ
        return None if rescheduled else SweepStopped("stopped by SIGTERM", signal.SIGTERM)
    return SweepStopped("stopped by Ctrl-C", signal.SIGINT) if isinstance(error, KeyboardInterrupt) else None


def _cancelled(error: SweepStopped, process: SweepExecution) -> SweepResult:
    """The end of a run that was told to stop, which Prefect would call crashed: its state says how to go on."""
    retry = "" if deployment.name is None else "retry this run, or: "
    command = resume_command(process.sweep_dir, deployment.name)
    way_on = f"to go on with it, {retry}{command}" if process.begun else "no trial had begun"
    message = f"stopped; {way_on}"
    get_run_logger().warning(message)
    return Cancelled(message=message, data=error)  # type: ignore[return-value]  # Prefect raises what is in it


def _checked(parameters: Mapping[str, object]) -> SweepConfig:
    """The complete config; a command line has made and checked it already, before it started the sweep's process."""
    if is_prepared():
        return SweepConfig.from_flow_parameters(parameters)
    config = begun_before(parameters) or tracked(from_form(parameters, os.environ, deployment_parameters()))
    # What nobody looks at may wait for its store; somebody at a terminal is told at once.
    patiently(lambda: check_machine(config), 0.0 if deployment.id is None else patience_of(config.store_uri))
    return config


def _sweep(
    config: SweepConfig, process: SweepExecution, opened: ParentRun, progress: SweepProgress, began: float
) -> SweepResult:
    # Done before, it is not done again, unless something was left to send to the store.
    unsent = (process.sweep_dir / TRACKING_FOLDER).exists()
    progress.restore(run_sweep.with_options(refresh_cache=unsent)(config, process, opened, progress))
    ended = progress.snapshot().ended
    assert ended is not None
    tracking = progress.snapshot().tracking
    # A store that did not take the last of the results in all that time is not waited for once more.
    patience_s = 0.0 if tracking is not None and tracking.pending else patience_of(config.store_uri)
    selection = select_top_run(config, opened, patience_s)
    downloaded = download_checkpoint(config, selection, patience_s)
    result = SweepResult(
        sweep_id=process.sweep_id,
        parent_run_id=opened.run_id,
        experiment_name=config.experiment_name,
        top_run_id=selection.run.run_id,
        rank_metric=config.rank_metric_name,
        rank_value=selection.rank_value,
        checkpoint_path=str(downloaded.path),
        checkpoint_iteration=selection.checkpoint.iteration,
        tracking_uri=config.store_uri,
        trials=ended.trials,
        wall_s=round(time.monotonic() - began, 3),
        fit_s=round(ended.fit_s, 3),
        training_slot_s=round(ended.training_slot_s, 3),
        slots=int(ended.slots),
        # A sweep that had trained to its end before has nothing to be efficient at.
        sweep_efficiency=round(ended.training_slot_s / (ended.slots * ended.fit_s), 4) if ended.fit_s else 0.0,
        experiment_id=opened.experiment_id,
        winner=selection.run.name,
        warnings=(*selection.warnings, *remarks(downloaded), *failure_words(progress.snapshot().rows)),
    )
    write_summary(config, opened, progress, process.sweep_dir, result)
    left = close_parent_run(
        config,
        process,
        opened,
        "FINISHED",
        tags={"plato.top_run_id": result.top_run_id, "plato.checkpoint": selection.checkpoint.artifact_path},
        # Where nothing was left to train, those of the attempt that trained stand.
        metrics={
            f"best_{result.rank_metric}": result.rank_value,
            "fit_s": result.fit_s,
            "training_slot_s": result.training_slot_s,
            "sweep_efficiency": result.sweep_efficiency,
        }
        if ended.fit_s
        else None,
        step=progress.snapshot().iteration,
        patience_s=patience_s,
    )
    record_done(process.sweep_dir)
    return result if left is None else result.model_copy(update={"warnings": (*result.warnings, left)})

"""A sweep as a job of Azure ML for a flow elsewhere, which reads the job's log: each event is a line of it.

The sweep runs as it does on a laptop, in a process of its own, with its folder in the job's storage. A job that begins
again on other nodes, and a new job after one that died, find that folder and go on.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from plato_core.aml.joblog import EVENT
from plato_core.aml.jobrun import JobRun
from plato_core.aml.jobsettings import SweepSettings
from plato_core.config import SweepConfig
from plato_core.errors import PlatoError, SweepError, SweepStopped, TrackingError
from plato_core.resuming import BUDGET, read_parent, resumed_config, write_parent
from plato_core.sweep.events import Event, Failed, SweepEnded, TrackingState
from plato_core.sweep.folder import CONFIG_NAME
from plato_core.sweep.process import SweepProcess
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.tracking import jobs
from plato_core.tracking.parent import ParentRun, upload_lineage
from plato_core.tracking.patience import patience_s, patiently
from plato_core.tracking.runs import note_ended

_TERMINATED = 128 + signal.SIGTERM
_TICK_S = 0.2


def run_sweep(job: SweepSettings, ray_address: str, told_to_stop: Callable[[], bool]) -> int:
    """Run the sweep to its end, or until the job is told to stop.

    Args:
        job: What the job was told.
        ray_address: Of the job's Ray.
        told_to_stop: Whether this process was.

    Returns:
        The job's exit code: 0 done, 1 failed, 2 bad input, 143 told to stop.
    """
    try:
        config = _config(job, ray_address)
        _take_over(job, Path(job.sweeps) / job.order.sweep_id, told_to_stop)
        with SweepProcess(config, sweep_id=job.order.sweep_id) as process:
            return _follow(job, process, told_to_stop)
    except SweepStopped:
        return _TERMINATED
    except PlatoError as error:
        _tell(Failed.of(error))
        return error.exit_code
    except Exception as error:
        _tell(Failed(error_type="bug", message=f"{type(error).__name__}: {error}"))
        raise


def _config(job: SweepSettings, ray_address: str) -> SweepConfig:
    here = {
        "compute": "local",
        "job_variables": {},
        "storage_path": job.sweeps,
        "ray_address": ray_address,
        "ray_nodes": job.nodes,
        "ray_wait_s": job.node_wait_s,
    }
    asked = job.order.config | here
    sweep_dir = Path(job.sweeps) / job.order.sweep_id
    if not (sweep_dir / CONFIG_NAME).exists():
        return SweepConfig.from_flow_parameters(asked | {"resume": None})
    may_change = (*BUDGET, "max_failures", "ray_address", "ray_nodes", "ray_wait_s")
    return resumed_config(sweep_dir, {name: asked[name] for name in may_change})


def _take_over(job: SweepSettings, sweep_dir: Path, told_to_stop: Callable[[], bool]) -> None:
    """Wait until no other job works on the sweep, and say in the tracking that this one does."""
    go = job.order.go
    run = JobRun.tracked_in(go.tracking_uri)

    def say(line: str) -> None:
        print(f"plato: {line}", flush=True)

    def sleep(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if told_to_stop():
                raise SweepStopped("the job was told to stop", signal.SIGTERM)
            time.sleep(_TICK_S)

    if run is not None:
        opened = ParentRun(go.parent_run_id, go.experiment_id, "")
        take_over = partial(jobs.take_over, go.tracking_uri, opened, run, say)
        patiently(take_over, patience_s(go.tracking_uri), say, sleep=sleep)
    note_ended(sweep_dir / TRACKING_FOLDER, job.order.ended)


def _follow(job: SweepSettings, process: SweepProcess, told_to_stop: Callable[[], bool]) -> int:
    go = job.order.go
    if read_parent(process.sweep_dir) is None:  # so that it can go on from elsewhere too
        write_parent(process.sweep_dir, ParentRun(go.parent_run_id, go.experiment_id, ""))
    process.go(go)
    ended: SweepEnded | None = None
    waiting = 0
    for event in process.events():
        if told_to_stop():
            for last in process.stop():
                _tell(last)
            return _TERMINATED
        if isinstance(event, SweepEnded):
            ended = event
        elif event is not None:
            _tell(event)
            waiting = event.pending if isinstance(event, TrackingState) else waiting
    if ended is None:
        raise SweepError(f"sweep {process.sweep_id} ended without a word")
    with contextlib.suppress(TrackingError):  # what it says stands in the trials' runs too
        upload_lineage(go.tracking_uri, go.parent_run_id, process.lineage())
    if waiting:
        raise TrackingError(
            f"{waiting} entries could not be sent to {go.tracking_uri}; they are kept with the sweep's files, and sent "
            "when it goes on"
        )
    _tell(ended)  # the last word: whoever reads it goes on
    return 0


def _tell(event: Event) -> None:
    if isinstance(event, SweepEnded):
        event = event.model_copy(update={"spool": None})  # whoever reads it has no such path
    sys.stdout.write(f"{EVENT}{event.model_dump_json()}\n")
    sys.stdout.flush()

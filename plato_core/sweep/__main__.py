"""The sweep as a program of its own: `python -m plato_core.sweep`, started by `plato_core.sweep.process`.

Ray and Prefect fight over signals in one process, so the sweep has its own. It starts Ray and the trials'
processes as soon as it knows the config, and lets them train once the parent's MLflow run is open.

Exit codes: 0 done, 1 failed, 2 bad input, 143 told to stop.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from plato_core.aml import jobrun
from plato_core.aml.jobrun import JobRun
from plato_core.config import SweepConfig
from plato_core.errors import PlatoError
from plato_core.processes import leave
from plato_core.report.text import counted
from plato_core.sweep import channel, folder, forkserver
from plato_core.sweep.environment import prepare_environment
from plato_core.sweep.events import Failed, Phase, SweepEnded
from plato_core.sweep.forkserver import ForkServer
from plato_core.sweep.protocol import Prepare

if TYPE_CHECKING:
    from plato_core.sweep.runner import Fitted
    from plato_core.tracking.callback import SweepTrackingCallback

STOPPED = 128 + signal.SIGTERM
# Of the 20 s in which a cancelled sweep must be gone; what is not sent then stays in the spool.
DRAIN_WHEN_CANCELLED_S = 4.0
# Else: seconds without progress after which the rest is left in the spool. A store elsewhere that is away or throttles
# gets more: `plato_core.tracking.patience`.
DRAIN_S = 60.0


def main() -> int:
    """Runs one sweep for the parent at the other end of standard input."""
    channel.open_events()
    logging.getLogger("stamina").setLevel(logging.ERROR)  # a line at each retry; what matters is told as events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_sigterm)
    prepare = channel.read_prepare()
    if prepare is None:
        return 0
    channel.listen()
    try:
        folder.hold(Path(prepare.sweep_dir))  # until this process ends
        return _run(prepare)
    except PlatoError as error:
        folder.record_end(Path(prepare.sweep_dir), "failed")
        channel.emit(Failed.of(error))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        folder.record_end(Path(prepare.sweep_dir), "failed")
        channel.emit(Failed(error_type="bug", message=f"{type(error).__name__}: {error}"))
        return 1
    finally:
        import ray

        ray.shutdown()
        # The parent does so too, unless it was killed.
        shutil.rmtree(prepare.ray_temp_dir, ignore_errors=True)


def _run(prepare: Prepare) -> int:
    config, sweep_dir = SweepConfig.from_flow_parameters(prepare.config), Path(prepare.sweep_dir)
    channel.emit(Phase(text="loading Ray"))
    local = config.ray_address is None
    prepare_environment(local=local)
    # At once: it imports for as long as this process and Ray take to start.
    ray_temp_dir = Path(prepare.ray_temp_dir)
    forks = ForkServer(ray_temp_dir) if local and forkserver.available(ray_temp_dir) else None
    from plato_core.sweep import population, runner
    from plato_core.sweep.past import past
    from plato_core.sweep.stopping import STATE

    tracking = runner.tracking_callback(config, sweep_id=prepare.sweep_id, sweep_dir=sweep_dir)
    try:
        if config.resume is not None and not population.unfinished(config, sweep_dir):
            for part in past(config, sweep_dir, {}):
                channel.emit(part)
            tracking.open()  # what was trained and not sent yet is sent
            fitted = runner.Fitted(fit_s=0.0, training_slot_s=0.0, slots=0)
            tracking.end_before(population.ended_before(config, sweep_dir, []))
        else:
            fitted = _train(config, prepare, tracking, forks)
        folder.record_end(sweep_dir, "stopped" if STATE.cancelled else "finished")
    finally:
        # Also of a sweep that failed: its runs must not stay RUNNING, and its errors are in their tags.
        drained = tracking.drain(
            DRAIN_S,
            runner.tell_tracking,
            lambda: DRAIN_WHEN_CANCELLED_S if STATE.cancelled else math.inf,  # it may be cancelled meanwhile
            patient=True,
        )
        runner.tell_tracking(drained)
    if JobRun.current() is not None:  # the path means nothing outside of the job
        drained = replace(drained, spool=None)
    channel.emit(
        SweepEnded(
            outcome="stopped" if STATE.cancelled else "finished",
            fit_s=fitted.fit_s,
            training_slot_s=fitted.training_slot_s,
            slots=fitted.slots,
            trials=config.num_tune_samples,
            message=drained.describe(),
            spool=None if drained.spool is None else str(drained.spool),
        )
    )
    return STOPPED if STATE.cancelled else 0


def _train(config: SweepConfig, prepare: Prepare, tracking: SweepTrackingCallback, forks: ForkServer | None) -> Fitted:
    from plato_core.sweep import cluster, footprint, population, runner
    from plato_core.sweep.past import past
    from plato_core.sweep.spent import read_spent_s
    from plato_core.sweep.stopping import STATE

    sweep_dir = Path(prepare.sweep_dir)
    channel.emit(Phase(text="starting Ray"))
    with jobrun.hidden():  # Ray's processes, which start now, do not track
        cluster.connect(config, Path(prepare.ray_temp_dir), sweep_dir, forks)
    signal.signal(signal.SIGTERM, _on_sigterm)  # Ray has just taken it
    packing = footprint.plan(config, prepare.sweep_id)
    configs = population.trial_configs(config, prepare.sweep_id, packing)
    if config.resume is not None:
        configs = population.resumed_configs(config, configs, sweep_dir)
        for part in past(config, sweep_dir, population.points_of(configs)):
            channel.emit(part)
        STATE.spent_s = read_spent_s(sweep_dir)
        folder.forget_end(sweep_dir)
    channel.emit(Phase(text=f"starting {counted(packing.resident, 'trial')} on {counted(packing.slots, 'CPU')}"))
    before = {} if config.resume is None else population.ended_before(config, sweep_dir, configs)
    fitted = runner.fit(config, configs=configs, packing=packing, sweep_dir=sweep_dir, tracking=tracking)
    tracking.end_before(before)
    return fitted


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if not channel.may_go():
        raise SystemExit(128 + number)
    from plato_core.sweep.stopping import STATE

    STATE.request("it was told to stop", cancelled=True)


if __name__ == "__main__":
    leave(main())  # an upload that hangs is not waited for: it is in the spool

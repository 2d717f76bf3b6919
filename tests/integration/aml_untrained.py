"""A sweep's own process without Ray and in a second: two trials, told of and tracked as the real ones are.

In a job's code it stands in the place of `plato_core.sweep` (`aml_home.code_of_a_job`); all else of the job is real.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import aml_driver
from aml_tracked import end, train
from aml_tracks import STEPS, TRIALS, UNTIL

from plato_core.config import SweepConfig
from plato_core.sweep import channel
from plato_core.sweep.events import Phase, Result, SweepEnded, TrackingState, TrialEnded, TrialStarted
from plato_core.tracking.parent import ParentRun


def main() -> int:
    """Does what `python -m plato_core.sweep` does, but for training."""
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.set())
    channel.open_events()
    prepare = channel.read_prepare()
    if prepare is None:
        return 0
    channel.listen()
    config, go = SweepConfig.from_flow_parameters(prepare.config), channel.wait_for_go()
    aml_driver.SWEEP_ID = prepare.sweep_id
    opened = ParentRun(go.parent_run_id, go.experiment_id, "")
    writer = aml_driver.track(config, opened)
    for index, trial in enumerate(TRIALS):
        channel.emit(TrialStarted(trial=trial, index=index))
    if config.resume is None:  # else it is trained, and what is left of it is sent
        train(writer, opened)
    for trial in TRIALS:
        channel.emit(Result(trial=trial, iteration=STEPS, episode_return=float(STEPS), metric_value=float(STEPS)))
    channel.emit(Phase(text=f"{len(TRIALS)} trials were tracked"))
    while not told_to_stop.is_set() and not Path(os.environ.get(UNTIL, "/")).exists():
        time.sleep(0.1)
    stopped = told_to_stop.is_set()
    status: Literal["KILLED", "FINISHED"] = "KILLED" if stopped else "FINISHED"
    for trial in TRIALS:
        channel.emit(TrialEnded(trial=trial, status=status, iteration=STEPS))
    drained = end(writer, status, 4.0 if stopped else math.inf)  # the limit of a cancelled sweep
    channel.emit(TrackingState(pending=drained.pending_ops))
    channel.emit(
        SweepEnded(
            outcome="stopped" if stopped else "finished",
            fit_s=1.0,
            training_slot_s=1.0,
            slots=1,
            trials=len(TRIALS),
            message=drained.describe(),
        )
    )
    return 143 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())

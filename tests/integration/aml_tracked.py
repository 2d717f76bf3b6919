"""What the driver of a sweep does inside a job, without Ray and in few seconds: two trials, from open to end."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Literal

import aml_driver
from aml_tracks import PARAMS, STEPS, TRIALS

from plato_core.sweep import folder
from plato_core.tracking.parent import ParentRun, close_parent
from plato_core.tracking.patience import PATIENCE_S
from plato_core.tracking.summary import DrainSummary
from plato_core.tracking.writer import Writer
from tasks.parent_run import open_parent_run
from tasks.retries import patiently


def track_two_trials() -> None:
    """Tracks them, and fails if anything is left or was refused."""
    aml_driver.SWEEP_ID = f"20260801-020000-{os.environ['AZUREML_RUN_ID'][3:9]}"
    config = aml_driver.settings()
    sweep_dir = config.storage_folder / aml_driver.SWEEP_ID
    sweep_dir.mkdir(parents=True)
    (sweep_dir / folder.CONFIG_NAME).write_text(config.to_yaml())
    opened = open_parent_run(config, aml_driver.SWEEP_ID, PATIENCE_S)
    writer = aml_driver.track(config, opened)
    train(writer, opened)
    drained = end(writer, "FINISHED")
    if not drained.complete or drained.rejected:
        raise RuntimeError(drained.describe())
    tags = {"plato.top_run_id": "t0"}
    close = partial(close_parent, config.store_uri, opened.run_id, "FINISHED", tags=tags, step=STEPS, end=False)
    patiently(close, PATIENCE_S)


def train(writer: Writer, opened: ParentRun) -> None:
    """Has the trials' runs made, with all that comes before their end."""
    for key in TRIALS:
        aml_driver.create(writer, opened, key)
        writer.append({"op": "params", "key": key, "values": {f"p{number}": "1" for number in range(PARAMS)}})
        for step in range(1, STEPS + 1):
            aml_driver.log(writer, key, step, names=4)
        aml_driver.upload(writer, key, STEPS)
        aml_driver.upload_results(writer, key, "of this job")


def end(writer: Writer, status: Literal["FINISHED", "KILLED"], limit_s: float = math.inf) -> DrainSummary:
    """Ends the trials' runs, and returns what of all was sent within the limit."""
    for key in TRIALS:
        writer.append({"op": "status", "key": key, "status": status, "time": aml_driver.now_ms()})
    return writer.drain(120.0, limit_s=lambda: limit_s)

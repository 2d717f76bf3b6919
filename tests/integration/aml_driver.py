"""What the driver of a sweep does inside a job, without Ray: `python -m aml_driver first|second|long`.

It prints what a test wants to know as one line of JSON, the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from prefect.logging import disable_run_logger
from trial_runs import make_checkpoint

from plato_core.aml.jobrun import JobRun
from plato_core.config import SweepConfig
from plato_core.config_form import from_form
from plato_core.sweep import folder
from plato_core.sweep.process import SweepProcess
from plato_core.tracking.hold import hold_tree
from plato_core.tracking.parent import ParentRun
from plato_core.tracking.spool import Spool, Target
from plato_core.tracking.writer import Writer
from tasks.parent_run import close_parent_run, open_parent_run, take_over_sweep

SWEEP_ID = "20260801-020000-aaaaaa"


def settings(**more: Any) -> SweepConfig:
    storage = os.environ["AZURE_ML_OUTPUT_sweeps"]  # noqa: SIM112 - Azure ML keeps the case of an output's name
    return from_form({"experiment_name": "another", "storage_path": storage, **more}, os.environ)


def track(config: SweepConfig, opened: ParentRun) -> Writer:
    target = Target(
        tracking_uri=config.store_uri,
        experiment_id=opened.experiment_id,
        parent_run_id=opened.run_id,
        sweep_id=SWEEP_ID,
        keep_checkpoints=1,
        mode="max",
    )
    writer = Writer(Spool.create(config.storage_folder / SWEEP_ID / "tracking", target))
    writer.start()
    return writer


def create(writer: Writer, opened: ParentRun, key: str) -> None:
    tags = {"mlflow.parentRunId": opened.run_id, "mlflow.runName": key, "trial_name": key}
    tags |= {"plato.sweep_id": SWEEP_ID, "plato.trial_id": key}
    writer.append({"op": "create", "key": key, "name": key, "time": now_ms(), "tags": tags})


def log(writer: Writer, key: str, step: int, names: int = 50) -> None:
    values = {f"metric/{number}": float(step) for number in range(names - 2)}
    values |= {"training_iteration": float(step), "episode_reward_mean": float(step)}
    writer.append({"op": "metrics", "key": key, "step": step, "time": now_ms(), "values": values})


def upload(writer: Writer, key: str, iteration: int) -> None:
    held = writer.spool.held(key, f"checkpoint_{iteration:06d}")
    written = writer.spool.directory.parent / "checkpoints" / key / str(iteration)
    if not written.exists():
        make_checkpoint(written, iteration, float(iteration))
    hold_tree(written, held)
    writer.append(
        {
            "op": "checkpoint",
            "key": key,
            "path": writer.spool.relative(held),
            "iteration": iteration,
            "score": float(iteration),
        }
    )


def upload_results(writer: Writer, key: str, note: str) -> None:
    file = writer.spool.held(key, "result.json")
    file.write_text(note)
    writer.append({"op": "file", "key": key, "path": writer.spool.relative(file)})


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def first() -> dict[str, Any]:
    """Opens the parent run and tracks two trials, and then dies: nothing is closed."""
    config = settings()
    sweep_dir = config.storage_folder / SWEEP_ID
    sweep_dir.mkdir(parents=True)
    (sweep_dir / folder.CONFIG_NAME).write_text(config.to_yaml())
    opened = open_parent_run.fn(config, SWEEP_ID)
    again = open_parent_run.fn(config, SWEEP_ID)  # as Prefect does where the first try was cut off
    writer = track(config, opened)
    for key in ("t0", "t1"):
        create(writer, opened, key)
        for step in range(1, 11):
            log(writer, key, step)
        writer.append({"op": "params", "key": key, "values": {f"p{number}": "1" for number in range(100)}})
        upload(writer, key, 10)
        while not writer.spool.runs.record(key).uploaded:  # two that wait would be one: only the better is sent
            time.sleep(0.05)
        upload(writer, key, 15)
        upload_results(writer, key, "of the first job")
    drained = writer.drain(60.0)
    return {
        "experiment": config.experiment_name,
        "parents": [opened.run_id, again.run_id],
        "said": drained.describe(),
        "rejected": drained.rejected,
    }


def second() -> dict[str, Any]:
    """Goes on with the sweep, to its end."""
    from plato_core.config_sources import load_config

    storage = os.environ["AZURE_ML_OUTPUT_sweeps"]  # noqa: SIM112 - Azure ML keeps the case of an output's name
    config = load_config({"resume": SWEEP_ID, "storage_path": storage}, None, os.environ)
    job = JobRun.current()
    assert job is not None
    with disable_run_logger():
        take_over_sweep.fn(config, job)
    with SweepProcess(config, at_once=False) as process:
        opened = open_parent_run.fn(config, SWEEP_ID)
        writer = track(config, opened)
        for key in ("t0", "t1"):
            log(writer, key, 11)
            upload(writer, key, 15)
            upload_results(writer, key, "of the second job")
            writer.append({"op": "status", "key": key, "status": "FINISHED", "time": now_ms()})
        drained = writer.drain(60.0)
        left = close_parent_run(
            config, process, opened, "FINISHED", tags={"plato.top_run_id": "t0"}, metrics={"best": 11.0}, step=11
        )
    return {"parent": opened.run_id, "left": left, "rejected": drained.rejected}


def long() -> dict[str, Any]:
    """Logs a point a second for as long as several tokens last."""
    config = settings()
    (config.storage_folder / SWEEP_ID).mkdir(parents=True)
    opened = open_parent_run.fn(config, SWEEP_ID)
    writer = track(config, opened)
    create(writer, opened, "t0")
    for step in range(1, 61):
        log(writer, "t0", step, names=3)
        time.sleep(1.0)
    drained = writer.drain(60.0)
    return {
        "sent": drained.sent_metrics,
        "complete": drained.complete,
    }


if __name__ == "__main__":
    told = {"first": first, "second": second, "long": long}[sys.argv[1]]()
    Path("outputs").mkdir(exist_ok=True)
    Path("outputs", "told.json").write_text(json.dumps(told))
    sys.exit(3 if sys.argv[1] == "first" else 0)

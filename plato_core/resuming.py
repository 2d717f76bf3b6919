"""Which sweep is meant by `--resume`, and with what settings it goes on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plato_core.aml.jobrun import JobRun
from plato_core.config import SweepConfig
from plato_core.errors import ConfigError
from plato_core.sweep import folder
from plato_core.sweep.folder import PATIENCE_S, wait_for_end
from plato_core.tracking.parent import ParentRun

LAST = "last"
PARENT_NAME = "parent.json"
FLOW_RUNS_NAME = "flow_runs.txt"
# Of these a sweep that goes on may have more than before; of all else what it had.
BUDGET = ("max_iterations", "time_budget_s")
# On which machines it runs, where its results go there, and how patient it is with trials that fail, is no part of it.
_RAY = ("ray_address", "ray_nodes", "ray_wait_s")
_FREE = (*_RAY, "job_variables", "local_path", "max_failures", "prune_after_days", "prune_keep")


def write_parent(sweep_dir: Path, parent: ParentRun) -> None:
    """Write down the sweep's run, once it is open."""
    folder.write_whole(sweep_dir / PARENT_NAME, json.dumps(asdict(parent)))


def read_parent(sweep_dir: Path) -> ParentRun | None:
    """Return the sweep's run; None if it was not opened."""
    try:
        return ParentRun(**json.loads((sweep_dir / PARENT_NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def note_flow_run(sweep_dir: Path, flow_run_id: str) -> None:
    """Write down that a flow run works on this sweep; when that is tried again, it goes on with it."""
    if flow_run_id not in (known := _flow_runs(sweep_dir)):
        folder.write_whole(sweep_dir / FLOW_RUNS_NAME, "".join(f"{one}\n" for one in [*known, flow_run_id]))


def sweep_of(storage: Path, flow_run_id: str) -> Path | None:
    """Return the folder of the newest sweep that a flow run has worked on; None if there is none."""
    return next((sweep for sweep in reversed(folder.sweeps_in(storage)) if flow_run_id in _flow_runs(sweep)), None)


def find_sweep(storage: Path, named: str, patience_s: float = PATIENCE_S) -> Path:
    """Return the folder of the sweep that a user named, once nothing works on it any more.

    Args:
        storage: The folder of sweeps.
        named: A sweep's id, its parent run's id, or `last`, the newest sweep that has not finished: never an older
            one while that one still ends.
        patience_s: How long, in seconds, the last processes of a sweep may take to end.

    Raises:
        ConfigError: There is none, or it still runs, or its results are just being sent.
    """
    sweeps = folder.sweeps_in(storage)
    if named == LAST:
        if (found := next((sweep for sweep in reversed(sweeps) if not folder.is_done(sweep)), None)) is None:
            raise ConfigError(f"resume: no sweep in {storage} is unfinished; give the id of one that finished")
        wait_for_end(found, patience_s)
        return found
    for sweep in sweeps:
        parent = read_parent(sweep)
        if named == sweep.name or (parent is not None and named == parent.run_id):
            wait_for_end(sweep, 0.0 if folder.has_parent(sweep) else patience_s)
            return sweep
    raise ConfigError(
        f"resume: there is no sweep {named!r} in {storage}; give a sweep's id, its parent run's id, or {LAST}, "
        "and with --storage-path the folder that it was started with"
    )


def resumed_config(sweep_dir: Path, given: Mapping[str, Any]) -> SweepConfig:
    """Return the config with which a sweep goes on: its own, with a larger budget where one is given.

    Args:
        sweep_dir: The sweep's folder.
        given: What the user gave beside `resume`, by field name; of mappings the keys that were given.

    Raises:
        ConfigError: A setting differs from the sweep's, or a budget is smaller.
    """
    original = SweepConfig.from_yaml(sweep_dir / folder.CONFIG_NAME)
    before = original.flow_parameters()
    said = {
        name: {**before[name], **value} if isinstance(value, Mapping) and isinstance(before[name], dict) else value
        for name, value in given.items()
        if value is not None and not (name in _RAY and original.compute == "aml")  # a job brings its own
    }
    wanted = SweepConfig.from_flow_parameters(before | said).flow_parameters()
    changed = {name: wanted[name] for name in given if name in wanted and wanted[name] != before[name]}
    for name, value in changed.items():
        if name in _FREE:
            continue
        if name not in BUDGET:
            raise ConfigError(
                f"{name}: {value!r} is not what sweep {sweep_dir.name} was started with ({before[name]!r}); "
                "leave it out, or start a new sweep"
            )
        if before[name] is None or value < before[name]:
            had = "no limit" if before[name] is None else f"the {before[name]!r}"
            raise ConfigError(
                f"{name}: {value!r} is less than {had} of sweep {sweep_dir.name}; "
                "a sweep that goes on may have more, not less"
            )
    # Its folder may be elsewhere than where it was begun: another job of Azure ML mounts it at another place.
    storage = sweep_dir.absolute().parent
    moved = {} if original.storage_folder == storage else {"storage_path": str(storage)}
    return original.model_copy(update={**changed, **moved, "resume": sweep_dir.name})


def resume_command(sweep_dir: Path, deployment: str | None = None) -> str:
    """Return the command that goes on with a sweep, for the folder in which this process works.

    Args:
        sweep_dir: The sweep's folder.
        deployment: The one to run for it from a job of Azure ML, whose folders end with it; by default the project's.
    """
    if JobRun.current() is not None:
        return f"prefect deployment run sweep/{deployment or 'aml'} -p resume={sweep_dir.name}"
    usual = Path(SweepConfig.model_fields["storage_path"].default).absolute()
    storage = sweep_dir.absolute().parent
    elsewhere = "" if storage == usual else f" --storage-path {shlex.quote(str(storage))}"
    return f"plato sweep --resume {sweep_dir.name}{elsewhere}"


def _flow_runs(sweep: Path) -> list[str]:
    try:
        return (sweep / FLOW_RUNS_NAME).read_text().split()
    except OSError:
        return []

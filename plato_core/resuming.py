"""Which sweep is meant by `--resume`, and with what settings it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plato_core.config import SweepConfig
from plato_core.errors import ConfigError
from plato_core.sweep import folder
from plato_core.tracking.parent import ParentRun

LAST = "last"
PARENT_NAME = "parent.json"
# Of these a sweep that goes on may have more than before; of all else what it had.
BUDGET = ("max_iterations", "time_budget_s")
# Where its results go on this machine is no part of the sweep.
_FREE = ("local_path", "prune_after_days", "prune_keep")


def write_parent(sweep_dir: Path, parent: ParentRun) -> None:
    """Write down the sweep's run, once it is open."""
    folder.write_whole(sweep_dir / PARENT_NAME, json.dumps(asdict(parent)))


def read_parent(sweep_dir: Path) -> ParentRun | None:
    """Return the sweep's run; None if it was not opened."""
    try:
        return ParentRun(**json.loads((sweep_dir / PARENT_NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def find_sweep(storage: Path, named: str) -> Path:
    """Return the folder of the sweep that a user named.

    Args:
        storage: The folder of sweeps.
        named: A sweep's id, its parent run's id, or `last`, the newest sweep that has not finished.

    Raises:
        ConfigError: There is none, or it runs.
    """
    sweeps = _sweeps(storage)
    if named == LAST:
        open_ones = (sweep for sweep in reversed(sweeps) if not _over(sweep) and not folder.is_running(sweep))
        if (found := next(open_ones, None)) is None:
            raise ConfigError(f"resume: no sweep in {storage} is unfinished; give the id of one that finished")
        return found
    for sweep in sweeps:
        parent = read_parent(sweep)
        if named == sweep.name or (parent is not None and named == parent.run_id):
            if folder.is_running(sweep):
                raise ConfigError(f"resume: sweep {sweep.name} is running; stop it first, or wait for its end")
            return sweep
    raise ConfigError(
        f"resume: there is no sweep {named!r} in {storage}; give a sweep's id, its parent run's id, or {LAST}, "
        "and with --storage-path the folder that it was started with"
    )


def resumed_config(sweep_dir: Path, given: Mapping[str, Any]) -> SweepConfig:
    """Return the config with which a sweep goes on: its own, with a larger budget where one is given.

    Args:
        sweep_dir: The sweep's folder.
        given: What the user gave beside `resume`, by field name.

    Raises:
        ConfigError: A setting differs from the sweep's, or a budget is smaller.
    """
    original = SweepConfig.from_yaml(sweep_dir / folder.CONFIG_NAME)
    before = original.flow_parameters()
    said = {name: value for name, value in given.items() if value is not None}
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
            raise ConfigError(
                f"{name}: {value!r} is less than the {before[name]!r} of sweep {sweep_dir.name}; "
                "a sweep that goes on may have more, not less"
            )
    return original.model_copy(update={**changed, "resume": sweep_dir.name})


def _sweeps(storage: Path) -> list[Path]:
    """The folders of sweeps, oldest first: their names begin with the time of their start."""
    if not storage.is_dir():
        return []
    named = [path for path in storage.iterdir() if folder.SWEEP_ID.fullmatch(path.name)]
    return sorted(path for path in named if (path / folder.CONFIG_NAME).is_file())


def _over(sweep: Path) -> bool:
    end = folder.read_end(sweep)
    return end is not None and end.outcome == "finished"

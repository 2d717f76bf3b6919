"""Closing the MLflow runs that a sweep left RUNNING when its processes died.

What was closed is written into the sweep's folder, so that the next to look need not ask the tracking store; a sweep
that is taken up again forgets it. Only sweeps with a folder here are looked at: whatever else is in the store belongs
to other machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from plato_core.aml.jobnote import JobNote
from plato_core.aml.jobrun import JobRun
from plato_core.config import SweepConfig
from plato_core.errors import PlatoError
from plato_core.prune import MAY_RUN_S, newest_and_size
from plato_core.resuming import read_parent, resume_command
from plato_core.sweep.folder import CONFIG_NAME, RUNNING_NAME, is_done, lock, sweeps_in, write_whole
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.tracking.journal import pending
from plato_core.tracking.left_running import LeftRun, end_left_running
from plato_core.tracking.runs import note_ended

CLOSED_NAME = "closed.json"

Life = Literal["running", "perhaps running", "sending", "over"]


class Closing(BaseModel):
    """What became of the runs of a sweep that is over.

    Attributes:
        sweep_id: The sweep.
        runs: The ids of the runs that were RUNNING and are KILLED now, the sweep's own last.
        error: Why they could not be closed; None if all is well.
    """

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    runs: tuple[str, ...] = ()
    error: str | None = None


class _Closed(BaseModel):
    """What is remembered.

    Attributes:
        unsent: How many operations were still to be sent then. Once they are, there may be runs that were not before.
    """

    model_config = ConfigDict(frozen=True)

    unsent: int


def close_left_running(storage: Path) -> list[Closing]:
    """Ends the MLflow runs of the sweeps in a folder that are RUNNING though no process of the sweep lives.

    Makes no request where nothing can have been left since the last time.

    Args:
        storage: The folder of sweeps; it need not be there.

    Returns:
        What was done and what could not be, of sweeps where there was something to do, oldest first.

    Raises:
        OSError: The folder cannot be read.
    """
    if not storage.is_dir():
        return []
    closings = (_close(sweep) for sweep in sweeps_in(storage) if not _is_closed(sweep))
    return [closing for closing in closings if closing.runs or closing.error is not None]


def forget_closing(sweep_dir: Path) -> None:
    """Lets a sweep's runs be opened again: waits for whoever is closing them, and forgets that they were.

    Args:
        sweep_dir: A sweep that a process of this machine holds, so that nobody begins to close its runs afterwards.
    """
    descriptor = os.open(sweep_dir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        (sweep_dir / CLOSED_NAME).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def life_of(sweep_dir: Path) -> Life:
    """Says whether a process works on a sweep. Without locks in the file system its age must do."""
    with contextlib.ExitStack() as held:
        running = lock(sweep_dir / RUNNING_NAME, held)
        if running is False:
            return "running"
        if lock(sweep_dir / TRACKING_FOLDER / "lock", held) is False:
            return "sending"
    # The storage of jobs is shared by machines, and a lock is seen on its own only.
    unseen = running is None or JobRun.current() is not None
    if unseen and time.time() - newest_and_size(sweep_dir)[0] < MAY_RUN_S:
        return "perhaps running"
    return "over"


def unsent(sweep_dir: Path) -> int | None:
    """Returns how many operations `plato flush` would send; None if what is there is damaged."""
    try:
        return pending(sweep_dir / TRACKING_FOLDER)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_closed(sweep: Path) -> bool:
    """Whether nothing needs to be closed, as far as the sweep's folder says."""
    if is_done(sweep):
        return True
    try:
        closed = _Closed.model_validate_json((sweep / CLOSED_NAME).read_bytes())
    except (OSError, ValidationError):
        return False
    return closed.unsent == (unsent(sweep) or 0)


def _close(sweep: Path) -> Closing:
    nothing = Closing(sweep_id=sweep.name)
    try:
        with contextlib.ExitStack() as held:
            # Whoever takes the sweep up again holds it first and waits for this lock then: see `forget_closing`.
            if lock(sweep, held) is False or life_of(sweep) != "over" or _is_closed(sweep):
                return nothing
            if lock(sweep / TRACKING_FOLDER / "lock", held) is False:
                return nothing
            if (note := JobNote.read(sweep)) is not None and note.lives():
                return nothing
            return _end_runs(sweep)
    except (PlatoError, OSError, ValueError) as error:
        if not sweep.exists():  # it was pruned meanwhile
            return nothing
        return nothing.model_copy(update={"error": " ".join(str(error).split())})


def _end_runs(sweep: Path) -> Closing:
    config = SweepConfig.from_yaml(sweep / CONFIG_NAME)
    left = end_left_running(
        config.store_uri,
        config.experiment_name,
        sweep.name,
        read_parent(sweep),
        ended_ms=int(newest_and_size(sweep)[0] * 1000),
        error=f"the sweep's process died; go on with it: {resume_command(sweep)}",
        found=lambda runs: _note_ended(sweep, runs),
    )
    write_whole(sweep / CLOSED_NAME, _Closed(unsent=unsent(sweep) or 0).model_dump_json())
    return Closing(sweep_id=sweep.name, runs=tuple(run.run_id for run in left))


def _note_ended(sweep: Path, runs: list[LeftRun]) -> None:
    note_ended(sweep / TRACKING_FOLDER, {run.trial_id: run.run_id for run in runs if run.trial_id is not None})

"""Removing the files of old sweeps, and of nothing else.

A sweep goes when it ended long enough ago, or is beyond the newest so many. One that never finished counts only
by its age: it may be taken up again. One that runs, and one with results that `plato flush` would still send, stay.

A folder is renamed first and deleted then, so nobody meets half a sweep; the next prune finishes what was cut off.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plato_core.aml.jobnote import JobNote
from plato_core.aml.jobrun import JobRun
from plato_core.errors import ConfigError, PlatoError
from plato_core.pruned import Gone, Kept, Pruned, Refused, Why
from plato_core.sweep.folder import RUNNING_NAME, SWEEP_ID, lock, read_end, sweeps_in
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.tracking.journal import pending
from plato_core.tracking.spool import count_rejected

DAY_S = 86400.0
# Where no lock can say that a sweep runs, it may as long as something in its folder is newer than this.
MAY_RUN_S = DAY_S
_TRASH_PREFIX = ".pruned-"
_TRASH = re.compile(re.escape(_TRASH_PREFIX) + SWEEP_ID.pattern)


def prune(
    folder: Path,
    *,
    older_than_days: float | None = None,
    keep: int | None = None,
    unsent: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Removes the files of old sweeps.

    Args:
        folder: The folder of sweeps. What in it is no sweep is left alone, and no symbolic link is followed.
        older_than_days: Sweeps that ended longer ago go; of those without a recorded end the newest file counts.
        keep: Of the sweeps that finished, all but so many of the newest go.
        unsent: Whether results that are in no tracking store yet may be lost.
        dry_run: Whether only to say what would be done.

    Raises:
        ConfigError: No limit is given, one is not possible, or the folder cannot be read.
    """
    _check(older_than_days, keep)
    now = time.time()
    sweeps, trash = _look(folder)
    beyond = _beyond_the_newest(sweeps, keep)
    gone: list[Gone] = []
    kept: list[Kept] = []
    failed: list[Refused] = []
    for sweep in trash:
        with _reported(sweep, failed), _claimed(sweep, now) as user:
            if user is None and (dry_run or _delete(sweep.path)):
                gone.append(Gone(sweep_id=sweep.sweep_id, why="left over", bytes=sweep.bytes))
    for sweep in sweeps:
        too_old = older_than_days is not None and now - sweep.ended > older_than_days * DAY_S
        if not too_old and sweep.sweep_id not in beyond:
            unfinished = keep is not None and not sweep.finished
            kept.append(Kept(sweep_id=sweep.sweep_id, why="unfinished" if unfinished else "within the limits"))
            continue
        with _reported(sweep, failed), _claimed(sweep, now) as user:
            if user is not None:
                if sweep.path.exists():  # else another prune was at it
                    kept.append(Kept(sweep_id=sweep.sweep_id, why=user))
                continue
            if not unsent and count_unsent(sweep.path) != 0:  # damaged: nobody knows
                kept.append(Kept(sweep_id=sweep.sweep_id, why="unsent"))
                continue
            why: Why = "too old" if too_old else "too many"
            rejected = count_rejected(sweep.path / TRACKING_FOLDER)
            if dry_run or _remove(sweep):
                gone.append(Gone(sweep_id=sweep.sweep_id, why=why, bytes=sweep.bytes, rejected=rejected))
    return Pruned(folder=folder, dry_run=dry_run, gone=tuple(gone), kept=tuple(kept), failed=tuple(failed))


@dataclass(frozen=True)
class _Sweep:
    path: Path
    sweep_id: str
    finished: bool
    ended: float
    changed: float
    bytes: int


def _check(older_than_days: float | None, keep: int | None) -> None:
    if older_than_days is None and keep is None:
        raise ConfigError("nothing says which sweeps are old: give --older-than-days, --keep, or both")
    if older_than_days is not None and not (math.isfinite(older_than_days) and older_than_days >= 0):
        raise ConfigError(f"--older-than-days: {older_than_days:g} is no number of days; give 0 or more")
    if keep is not None and keep < 0:
        raise ConfigError(f"--keep: {keep} is no number of sweeps; give 0 or more")


def _look(folder: Path) -> tuple[list[_Sweep], list[_Sweep]]:
    """Returns the sweeps in a folder, oldest first, and what interrupted prunes left of others."""
    if SWEEP_ID.fullmatch(folder.absolute().name):
        raise ConfigError(f"{folder} is a single sweep; give the folder that it is in, {folder.absolute().parent}")
    try:
        sweeps = [_seen(path) for path in sweeps_in(folder)]
        entries = [Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        raise ConfigError(f"{folder}: there is no such folder; give the --storage-path of the sweeps") from None
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be read: {error.strerror}; give the --storage-path of the sweeps"
        ) from error
    trash = [_seen(path) for path in entries if _TRASH.fullmatch(path.name)]
    return sorted(sweeps, key=lambda sweep: (sweep.ended, sweep.sweep_id)), trash


def _seen(path: Path) -> _Sweep:
    changed, size = newest_and_size(path)
    end = read_end(path)
    return _Sweep(
        path=path,
        sweep_id=path.name.removeprefix(_TRASH_PREFIX),
        finished=end is not None and end.done,
        ended=changed if end is None else end.when.timestamp(),
        changed=changed,
        bytes=size,
    )


def newest_and_size(path: Path) -> tuple[float, int]:
    """Returns when something below a folder last changed, and the size of its files, each counted once."""
    changed, size, seen = 0.0, 0, set[tuple[int, int]]()
    for parent, _, names in os.walk(path):
        for full in (parent, *(os.path.join(parent, name) for name in names)):
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours to see
                found = os.lstat(full)
                changed = max(changed, found.st_mtime)
                if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    size += found.st_size
    return changed, size


def _beyond_the_newest(sweeps: list[_Sweep], keep: int | None) -> set[str]:
    finished = [sweep.sweep_id for sweep in sweeps if sweep.finished]
    return set() if keep is None else set(finished[: max(0, len(finished) - keep)])


def count_unsent(sweep_dir: Path) -> int | None:
    """Returns how many operations `plato flush` would send; None if what is there is damaged or cannot be read.

    What the tracker refused for good does not count.
    """
    try:
        return pending(sweep_dir / TRACKING_FOLDER)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_job(sweep_dir: Path) -> bool:
    """Says whether a job of Azure ML works on the sweep, or may: its note there is the only way to it."""
    if (note := JobNote.read(sweep_dir)) is None:
        return False
    try:
        return note.lives()
    except PlatoError:
        return True


@contextlib.contextmanager
def _claimed(sweep: _Sweep, now: float) -> Iterator[Literal["running", "perhaps running"] | None]:
    """Has the sweep to itself for as long as this lasts; yields why not, where that cannot be."""
    with contextlib.ExitStack() as held:
        # The folder's own lock, the first of all, is for prunes among themselves; the last is that of `plato flush`.
        others = lock(sweep.path, held)
        running = others is not False and lock(sweep.path / RUNNING_NAME, held)
        flushing = running is not False and lock(sweep.path / TRACKING_FOLDER / "lock", held)
        # The storage of jobs is shared by machines, and a lock is seen on its own only.
        unseen = running is None or (running and not sweep.finished and JobRun.current() is not None)
        nobody_knows = unseen and not sweep.path.name.startswith(_TRASH_PREFIX)
        if flushing is False:
            yield "running"
        elif (nobody_knows and now - sweep.changed < MAY_RUN_S) or (not sweep.finished and _has_job(sweep.path)):
            yield "perhaps running"
        else:
            yield None


@contextlib.contextmanager
def _reported(sweep: _Sweep, failed: list[Refused]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        failed.append(Refused(sweep_id=sweep.sweep_id, error=f"{error.strerror or error}{where}"))


def _remove(sweep: _Sweep) -> bool:
    trash = sweep.path.with_name(_TRASH_PREFIX + sweep.path.name)
    try:
        sweep.path.rename(trash)
    except FileNotFoundError:
        return False  # another prune was faster
    return _delete(trash)


def _delete(path: Path) -> bool:
    """Deletes a folder, as far as it can; returns whether something was there.

    Raises:
        OSError: The first reason why some of it is still there.
    """
    if not path.exists():
        return False
    errors: list[OSError] = []

    def remember(function: Callable[..., Any], name: str, what: Any) -> None:
        if not isinstance(what[1], FileNotFoundError):
            errors.append(what[1])

    shutil.rmtree(path, onerror=remember)
    if errors:
        raise errors[0]
    return True

"""What a sweep's folder says of the sweep: its name, whether a process of it lives, how it ended.

::

    config.yaml     the resolved config; a folder without it is no sweep's
    running.lock    locked (flock, shared) by the sweep's process and by its parent for as long as each lives
    parent.lock     locked (flock, exclusive) by the parent alone: one at a time has a sweep run or go on
    ended.json      how training ended, when, and whether the best checkpoint was fetched too; not there while it runs,
                    and never if it was killed

The folder itself is locked by whoever does something to a sweep that has ended: prunes it, or closes its runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from plato_core.errors import ConfigError, SweepError
from plato_core.sweep.protocol import TRACKING_FOLDER

CONFIG_NAME = "config.yaml"
RUNNING_NAME = "running.lock"
PARENT_LOCK_NAME = "parent.lock"
END_NAME = "ended.json"
SWEEP_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
# Whoever looks whether a sweep runs locks it for a moment; who holds it for longer has it to himself.
_LOOK_S = 0.2
# A sweep whose parent was killed ends by itself within 20 s.
PATIENCE_S = 30.0

Outcome = Literal["finished", "stopped", "failed"]


class End(BaseModel):
    """How a sweep's training ended.

    Attributes:
        outcome: By itself, told to stop, or with an error.
        when: The moment.
        done: Whether nothing is left to do: the winner was selected and its checkpoint is on this machine.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    when: AwareDatetime
    done: bool = False


class Hold:
    """The word of one process that a sweep runs, or that it alone is its parent.

    The kernel takes it back when the process dies, however that is.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Takes it back now; a second time it does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def new_sweep_id() -> str:
    """Returns a name for a sweep that starts now; `SWEEP_ID` matches it."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def sweeps_in(storage: Path) -> list[Path]:
    """Returns the folders of the sweeps in a folder, oldest first: their names begin with the time of their start.

    No symbolic link is followed. A folder that is not there has none.

    Raises:
        OSError: The folder cannot be read.
    """
    if not storage.is_dir():
        return []
    named = [Path(entry) for entry in os.scandir(storage) if SWEEP_ID.fullmatch(entry.name)]
    return sorted(path for path in named if not path.is_symlink() and (path / CONFIG_NAME).is_file())


def hold(sweep_dir: Path) -> Hold:
    """Marks a sweep as running, for this process; several may do so.

    On a file system without locks it does nothing: who prunes goes by the age of the files there.

    Raises:
        SweepError: Another process has it to itself, such as a prune.
    """
    descriptor = os.open(sweep_dir / RUNNING_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            os.close(descriptor)
            raise SweepError(
                f"{sweep_dir} is locked by another process, as while it is being pruned; try again"
            ) from None
        except OSError:
            os.close(descriptor)
            return Hold(None)
        return Hold(descriptor)


def own(sweep_dir: Path, patience_s: float = PATIENCE_S) -> Hold:
    """Makes this process the parent of a sweep, the only one, once whatever still works on it has ended.

    On a file system without locks it does nothing.

    Args:
        sweep_dir: The sweep's folder.
        patience_s: How long to wait for that end, in seconds. For the end of another parent nobody waits.

    Raises:
        ConfigError: The sweep has another parent, or something still works on it.
    """
    descriptor = os.open(sweep_dir / PARENT_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    owned = Hold(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        wait_for_end(sweep_dir, patience_s)
    except BlockingIOError:
        owned.release()
        raise ConfigError(_still_running(sweep_dir)) from None
    except ConfigError:
        owned.release()
        raise
    except OSError:
        owned.release()
    return owned


def has_parent(sweep_dir: Path) -> bool:
    """Says whether a process, perhaps this one, is the parent of a sweep; as long as it is, the sweep may go on."""
    return _is_locked(sweep_dir / PARENT_LOCK_NAME)


def wait_for_end(sweep_dir: Path, patience_s: float = PATIENCE_S) -> None:
    """Waits until nothing works on a sweep: it, or the kernel, may just be ending the last of its processes.

    Args:
        sweep_dir: The sweep's folder.
        patience_s: How long, in seconds.

    Raises:
        ConfigError: It still runs then, or `plato flush` still sends its results.
    """
    deadline = time.monotonic() + patience_s
    while (running := is_running(sweep_dir)) or _is_locked(sweep_dir / TRACKING_FOLDER / "lock"):
        if time.monotonic() >= deadline:
            raise ConfigError(
                _still_running(sweep_dir)
                if running
                else f"the results of sweep {sweep_dir.name} are just being sent by plato flush; "
                "wait for its end, then try again"
            )
        time.sleep(min(0.2, patience_s))


def _still_running(sweep_dir: Path) -> str:
    return (
        f"sweep {sweep_dir.name} is still running on this machine; "
        "stop it, or wait for the end of its processes, then try again"
    )


def lock(path: Path, held: contextlib.ExitStack) -> bool | None:
    """Locks a file or folder for as long as `held` lasts, unless another process has it.

    Returns:
        Whether that went; None if it is not there, or is on a file system without locks.
    """
    try:
        descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_running(sweep_dir: Path) -> bool:
    """Says whether a process holds the sweep. Without locks in the file system nobody knows: no."""
    return _is_locked(sweep_dir / RUNNING_NAME)


def _is_locked(path: Path) -> bool:
    with contextlib.ExitStack() as held, contextlib.suppress(OSError):
        return lock(path, held) is False
    return False


def record_end(sweep_dir: Path, outcome: Outcome) -> None:
    """Writes down how training ended. A full disk is no reason to fail now: the sweep then counts as unfinished."""
    with contextlib.suppress(OSError):
        write_whole(sweep_dir / END_NAME, End(outcome=outcome, when=datetime.now(UTC)).model_dump_json())


def record_done(sweep_dir: Path) -> None:
    """Writes down that nothing is left to do. On a full disk the sweep counts as unfinished, as in `record_end`."""
    end = read_end(sweep_dir) or End(outcome="finished", when=datetime.now(UTC))
    with contextlib.suppress(OSError):
        write_whole(sweep_dir / END_NAME, end.model_copy(update={"done": True}).model_dump_json())


def forget_done(sweep_dir: Path) -> None:
    """Takes back that nothing is left to do: its winner is selected again at least."""
    if (end := read_end(sweep_dir)) is not None and end.done:
        write_whole(sweep_dir / END_NAME, end.model_copy(update={"done": False}).model_dump_json())


def is_done(sweep_dir: Path) -> bool:
    """Says whether nothing is left to do. A sweep that trained to its end and then died has its winner to select."""
    end = read_end(sweep_dir)
    return end is not None and end.done


def forget_end(sweep_dir: Path) -> None:
    """Takes the end back: the sweep goes on."""
    (sweep_dir / END_NAME).unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that whoever reads it meets the old content or the new, and never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def read_end(sweep_dir: Path) -> End | None:
    """Returns how training ended, None if nothing readable says so."""
    try:
        return End.model_validate_json((sweep_dir / END_NAME).read_bytes())
    except (OSError, ValidationError):
        return None

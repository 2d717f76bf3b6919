"""The spool: the folder that holds a sweep's tracking until it is in the store.

::

    target.json     where it all goes (no secrets)
    journal-*.jsonl cursor.json   the operations, see plato_core.tracking.journal
    runs.json       the run of each trial, see plato_core.tracking.runs
    held/           checkpoints and files that are still to be uploaded
    rejected.jsonl  operations that the store refused for good, each with its error
    lock            locked as long as a process sends from here

When all of it is in the store the folder goes, and only ``runs.json`` stays, in the sweep's folder above it.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from plato_core.errors import ConfigError, TrackingError
from plato_core.tracking.client import absolute_uri, redact
from plato_core.tracking.journal import Journal, segments_in, write_json
from plato_core.tracking.runs import RUNS_NAME, RunTable

if TYPE_CHECKING:
    from plato_core.tracking.summary import DrainSummary

REJECTED_NAME = "rejected.jsonl"
FLUSH_TIMEOUT_S = 60.0


class Target(BaseModel):
    """Where a spool is sent to, and what its writer must know.

    Attributes:
        tracking_uri: The store.
        experiment_id: The experiment of the runs.
        parent_run_id: The sweep's own run.
        sweep_id: The sweep.
        keep_checkpoints: How many of the best checkpoints of a run stay in the store, beside its last.
        mode: Whether a high score is good.
    """

    model_config = ConfigDict(frozen=True)

    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    sweep_id: str
    keep_checkpoints: int
    mode: Literal["max", "min"]


class Spool:
    """A spool that this process has to itself.

    Attributes:
        used_before: Whether an earlier process has sent for this sweep, so that the store may know more than is
            written down here.

    Args:
        directory: The folder; :meth:`create` makes one, and the constructor opens what is there.

    Raises:
        ConfigError: ``directory`` is no spool.
        TrackingError: Another process is sending from it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.target = _read_target(directory)
        self._left_runs = directory.parent / RUNS_NAME
        self.used_before = (directory / "lock").exists() or self._left_runs.exists()
        self._lock = _lock(directory / "lock")
        self.journal = Journal(directory)
        self.runs = RunTable.of_spool(directory)

    @classmethod
    def create(cls, directory: Path, target: Target) -> "Spool":
        """Open the spool at ``directory``, making it if need be; what it held of an earlier process is kept.

        A password in the tracking URI is used by this process and not written down; ``plato flush`` then
        needs ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``.
        """
        directory.mkdir(parents=True, exist_ok=True)
        target = target.model_copy(update={"tracking_uri": absolute_uri(target.tracking_uri)})
        written = target.model_copy(update={"tracking_uri": _without_credentials(target.tracking_uri)})
        write_json(directory / "target.json", written.model_dump())
        spool = cls(directory)
        spool.target = target
        return spool

    def held(self, key: str, name: str) -> Path:
        """Where the trial ``key`` holds a file or a checkpoint; its folder is made."""
        folder = self.directory / "held" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def relative(self, path: Path) -> str:
        """The path as an operation names it."""
        return path.relative_to(self.directory).as_posix()

    def release(self, path: str) -> None:
        """Let go of a held file or directory, named as in an operation."""
        full = self.directory / path
        if full.is_dir():
            shutil.rmtree(full, ignore_errors=True)
        else:
            full.unlink(missing_ok=True)

    def reject(self, op: dict[str, Any], error: str) -> None:
        """Set an operation aside that the store refused for good."""
        with (self.directory / REJECTED_NAME).open("a") as file:
            file.write(json.dumps({"error": error, "op": op}) + "\n")

    @property
    def rejected(self) -> int:
        """How many operations were set aside, by this process and those before it."""
        return count_rejected(self.directory)

    def close(self, *, remove: bool = False) -> None:
        """Close the files and let another process send; with ``remove`` the folder goes too, and the runs stay."""
        self.journal.close()
        if remove:
            self.runs.save(self._left_runs)
            for segment in segments_in(self.directory):  # first: killed in the middle, it must not be sent again
                segment.unlink()
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def count_rejected(directory: Path) -> int:
    """How many operations were set aside in the spool at `directory`, which need not be there."""
    path = directory / REJECTED_NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


def flush_command(path: Path) -> int:
    """Send what a sweep could not send: the command ``plato flush SPOOL``.

    Args:
        path: The spool, or the sweep's folder that it is in.

    Returns:
        Exit code: 0 when everything is in the store, 1 when something is left; a line says what.

    Raises:
        ConfigError: ``path`` is no spool.
        TrackingError: Another process is sending from it, or the store does not answer.
    """
    from plato_core.tracking.client import check_reachable
    from plato_core.tracking.writer import Writer

    directory = path / "tracking" if (path / "tracking" / "target.json").exists() else path
    check_reachable(_read_target(directory).tracking_uri)
    writer = Writer(Spool(directory))
    shown = 0.0

    def show(summary: "DrainSummary") -> None:
        nonlocal shown
        if time.monotonic() - shown >= 1.0:
            shown = time.monotonic()
            print(
                f"{summary.pending_ops} operations to send, {summary.bytes / 1e6:.1f} MB uploaded",
                file=sys.stderr,
            )

    writer.start()
    summary = writer.drain(FLUSH_TIMEOUT_S, show)
    print(summary.describe(), file=sys.stderr)
    return 0 if summary.complete else 1


def _read_target(directory: Path) -> Target:
    path = directory / "target.json"
    try:
        return Target.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        what = "is not there" if not directory.exists() else "holds no readable target.json"
        raise ConfigError(
            f"{directory} {what}, so it is no spool; name the folder that the sweep's last message named"
        ) from error


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise TrackingError(
            f"{path.parent} is being sent by process {owner}; wait for it to end, or end it, and try again"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _without_credentials(uri: str) -> str:
    head, separator, tail = redact(uri).partition("://")
    return head + separator + tail.rpartition("@")[2] if ":***@" in tail else uri

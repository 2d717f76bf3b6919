"""Temporary folders for downloads, beside their target, which outlive no process for long."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".plato-download-"
_LOCK = "lock"
_UNLOCKED_AGE_S = 3600.0
"""How old a folder without a lock file must be to count as left behind: a new one has none for an instant."""


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Give a temporary folder in `parent`, removed at the end, and remove those of killed processes.

    Its owner holds a lock on a file in it, which the system lets go when the owner dies. So a folder whose
    lock can be taken is left over, and one whose lock is held is somebody's download under way.

    Args:
        parent: An existing folder; the temporary one is on the same filesystem.

    Raises:
        OSError: `parent` cannot be written.
    """
    clear_leftovers(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def clear_leftovers(parent: Path) -> list[Path]:
    """Remove the temporary folders in `parent` whose process is gone, and return their paths."""
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _UNLOCKED_AGE_S:
                    shutil.rmtree(folder)
                    removed.append(folder)
            continue
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            removed.append(folder)
        except OSError:
            continue  # held by a live process, or a filesystem without locks: not ours to judge
        finally:
            os.close(lock)
    return removed


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody who clears leftovers came in between
            os.close(lock)
            continue
        except OSError:  # a filesystem without locks
            return folder, lock
        if (folder / _LOCK).exists():
            return folder, lock
        os.close(lock)

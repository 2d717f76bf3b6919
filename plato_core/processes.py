"""Whether processes live, and their end: that of others, whoever their parent is, and that of this one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from typing import NoReturn

import psutil


def lives(process: psutil.Process) -> bool:
    """Says whether a process runs. One whose end its parent has not asked for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Waits for processes to end, whoever their parent is, and returns those that have not."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while True:
        left = [process for process in left if lives(process)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Ends processes at once."""
    killed = list(processes)
    for process in killed:
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_gone(killed, 5.0)


def leave(code: int) -> NoReturn:
    """Ends this process at once, whatever its threads are at.

    Python would wait at its end for each thread of a pool, in this project's code and in the stores' clients: for
    minutes, if one is in a request that is never answered. What such threads have in temporary folders stays there.

    Args:
        code: Its exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it is full, broken or closed
            stream.flush()
    os._exit(code)

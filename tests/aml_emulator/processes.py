"""Processes found by a variable of their environment, so that none is left, whoever started it (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

EMULATOR, NODE = "AML_EMULATOR", "AML_EMULATOR_NODE"
SHORT = "ae"  # how folders in /tmp begin
_SETTLES_S = 0.05


def marker(emulator: str, job: str = "", node: int = 0) -> dict[str, str]:
    """Variables for a child process, which its own children inherit."""
    return {EMULATOR: emulator} | ({NODE: f"{emulator}/{job}/{node}/"} if job else {})


def find(variable: str, prefix: str) -> list[int]:
    """Returns the ids of all processes with a variable that begins so."""
    wanted, found = f"{variable}={prefix}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(entry.startswith(wanted) for entry in (folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
    return found


def kill(variable: str, prefix: str) -> None:
    """Ends them at once, and those that they start meanwhile."""
    while pids := find(variable, prefix):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_SETTLES_S)


def kill_job(emulator: str, job: str) -> None:
    kill(NODE, f"{emulator}/{job}/")


def kill_node(emulator: str, job: str, node: int) -> None:
    kill(NODE, f"{emulator}/{job}/{node}/")

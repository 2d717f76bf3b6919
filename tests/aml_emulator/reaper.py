"""Waits until its parent is gone, however it went, and ends what it left: `python -m aml_emulator.reaper <id>`."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

from aml_emulator import processes


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends after the emulator, never before
    sys.stdin.buffer.read()
    processes.kill(processes.EMULATOR, sys.argv[1])
    for folder in Path("/tmp").glob(f"{processes.SHORT}{sys.argv[1]}*"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

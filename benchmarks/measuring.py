"""Measuring in a process of its own, and showing what was measured."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from running import environment, last_line

ROOT = Path(__file__).resolve().parents[1]


def measured(command: Sequence[str], folder: Path, limit_s: float) -> dict[str, Any] | None:
    """Runs a script of `benchmarks/` that measures one thing.

    Returns:
        The JSON object on its last line; None if it was ended after `limit_s`.

    Raises:
        RuntimeError: It failed.
    """
    out, log = folder / "measured.out", folder / "measured.log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment(), stdout=stdout, stderr=stderr
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}: {last_line(log)}")
    return json.loads(last_line(out))


def end_in_order() -> None:
    """Has SIGTERM end this process as Ctrl-C does, so that it clears away what it has made."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def peak_mib() -> float:
    """Returns the most memory that this process has held, in MiB.

    Not by `getrusage` on Linux, where a new process begins with the peak of the one that started it.
    """
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows of the same keys as a table."""
    if not rows:
        return
    cells = [[*rows[0]], *[[_cell(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        columns = zip(line, widths, strict=True)
        print(
            "  ".join(
                cell.ljust(width) if not index else cell.rjust(width) for index, (cell, width) in enumerate(columns)
            )
        )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)

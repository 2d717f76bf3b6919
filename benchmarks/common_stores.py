"""What the benchmarks of the tracking store share: a server on loopback, measuring in a process of its own, tables."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from running import FOREIGN, QUIET, last_line, say

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Returns this process's environment without what leads to other stores, and with the project to import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | QUIET | {"PYTHONPATH": str(ROOT)}


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


@contextlib.contextmanager
def mlflow_server(database: Path, artifacts: Path) -> Iterator[str]:
    """Runs an MLflow server on loopback, and gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts)]
    log_file = database.with_name("server.log")
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=database.parent, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_up(process, f"http://127.0.0.1:{port}", log_file)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it may be in the middle of a question that nobody waits for
        process.wait()


def cpu_s(uri: str) -> float:
    """Returns the CPU seconds that the server at an address has spent so far."""
    port, total = uri.rpartition(":")[2], 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if port in process.cmdline():
                for one in (process, *process.children(recursive=True)):
                    times = one.cpu_times()
                    total += times.user + times.system
                break
    return total


def end_in_order() -> None:
    """Has SIGTERM end this process as Ctrl-C does, so that it clears away what it has made."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _wait_until_up(process: subprocess.Popen[bytes], uri: str, log: Path) -> None:
    deadline = time.monotonic() + 90.0
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{uri}/health", timeout=1).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"the MLflow server does not answer: {last_line(log)}")


def peak_mib() -> float:
    """Returns the most memory that this process has held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


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


def warn_if_busy() -> float:
    """Returns the load of the machine, and says so if it is not quiet."""
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is not quiet (load {load:.1f}): these numbers will not be comparable")
    return round(load, 2)

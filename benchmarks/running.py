"""Running a benchmark's commands: each in its own folder, with progress lines, watched from outside."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
TELL_EVERY_S = 15.0
SAMPLE_EVERY_S = 0.5
_LOOKS_S = 3.0  # for others that use the machine
_QUIET_UP_TO = 0.1  # of all its CPUs
# What would lead a sweep elsewhere than to this machine and its fresh folder.
FOREIGN = ("PLATO_", "PREFECT_", "MLFLOW_", "RAY_")
# Nothing leaves the machine while it is measured, on neither side.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}


def environment() -> dict[str, str]:
    """Returns this process's environment without what leads to other stores, and with the project to import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def run_command(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    label: str,
    sample: Callable[[int], None] | None = None,
) -> tuple[float, dict[str, Any]]:
    """Runs a command in `folder` to its end, with a progress line now and then.

    Returns:
        Wall seconds, and the JSON object on the last line of its standard output.

    Raises:
        RuntimeError: It failed, or its last line is no JSON object.
    """
    out, log = folder / "stdout.txt", folder / "stderr.txt"
    say(f"{label}: {' '.join(command[1:])}")
    began = told = time.monotonic()
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=environment() | dict(variables), stdout=stdout, stderr=stderr
        )
        try:
            while process.poll() is None:
                time.sleep(SAMPLE_EVERY_S if sample else 0.1)
                if sample is not None:
                    sample(process.pid)
                if time.monotonic() - told >= TELL_EVERY_S:
                    told = time.monotonic()
                    say(f"{label}: {told - began:.0f} s, {last_line(log) or last_line(out) or 'running'}")
        finally:
            if process.poll() is None:  # Ctrl-C here: the command ends what it has started
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)
    wall_s = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {last_line(log) or last_line(out)}")
    try:
        return wall_s, json.loads(last_line(out))
    except ValueError:
        raise RuntimeError(f"its last line is no JSON: {last_line(out)[:200]!r}") from None


class Memory:
    """Peak memory of the processes of our sweep, sampled while it runs.

    Attributes:
        trial: Most bytes that any one trial's process held resident.
        total: Most bytes that all processes held at once, shared pages counted once for each of them.
    """

    def __init__(self) -> None:
        self.trial = 0
        self.total = 0

    def sample(self, pid: int) -> None:
        """Looks at the processes below `pid`, once."""
        total = 0
        try:
            processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                resident = process.memory_info().rss
                name = " ".join(process.cmdline()[:1])
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            total += resident
            if name.startswith("ray::") and "Trainable" in name:
                self.trial = max(self.trial, resident)
        self.total = max(self.total, total)

    def total_mib(self) -> str:
        """Returns the total in words."""
        return f"up to {self.total / 2**20:.0f} MiB at once"


def machine_now() -> dict[str, Any]:
    """Says what the machine is and whether others use it, and returns both for a benchmark's result.

    Not by the load of the last minute: where one benchmark comes after another, that is the one before.
    """
    busy = psutil.cpu_percent(interval=_LOOKS_S) / 100
    model = machine()
    say(f"{model}; busy for {busy:.0%} of {_LOOKS_S:g} s")
    if busy > _QUIET_UP_TO:
        say("the machine is not quiet: these numbers will not be comparable")
    return {"machine": model, "busy_at_start": round(busy, 3)}


def machine() -> str:
    """Returns the machine in a line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def last_line(path: Path) -> str:
    """Returns the last line of a text file that is not empty; an empty string if there is none."""
    lines = path.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def say(line: str) -> None:
    """Prints a progress line at once."""
    print(line, flush=True)

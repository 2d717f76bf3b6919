"""From the command to the first step of training, against the same starts done bare, one after the other.

::

    python benchmarks/start_up.py                # 3 rounds of both, medians
    python benchmarks/start_up.py --cpu          # instead: ours alone, the CPU time of its processes until then
    python benchmarks/start_up.py --quick        # one round

Ours is `--test-local` by the command that a user types, 4 trials on 2 CPUs, ended after an iteration. Bare is one
process that starts Ray, opens the MLflow store, starts Prefect, imports RLlib and builds one algorithm with the same
settings. Both end their clock at the first step that any environment takes, and have a fresh folder and PREFECT_HOME.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from first_step import ENV_NAME, FOLDER_VARIABLE
from running import environment, last_line, machine_now, say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TARGET = 0.6
FIRST_STEP = "first step of training"
# The network and batch of the preset test-local.
BARE = "bare_start.py"
# What a process is, by the first of these words that its command line has.
ROLES = {
    "plato_core.sweep.forkserver": "imports for all trials",
    "plato_core.sweep": "the sweep's process",
    "sweep_and_fetch.py": "the command: Prefect, MLflow",
    "prefect": "Prefect's server",
    "Trainable": "trials",
    "ray": "Ray's own processes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    options = _options(argv)
    now = machine_now()
    if options.cpu:
        folder = Path(tempfile.mkdtemp(prefix="plato-bench-start-cpu-"))
        used: dict[str, float] = {}
        _ours(folder, used)
        shutil.rmtree(folder, ignore_errors=True)
        for role, seconds in sorted(used.items(), key=lambda item: -item[1]):
            print(f"{role:44}{seconds:>8.1f} s of CPU")
        print(json.dumps({"benchmark": "start_up", **now, "cpu_s": used}), flush=True)
        return 0
    rounds: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    for number in range(1, options.rounds + 1):
        for side, marks_of in (("bare", _bare), ("ours", _ours)):
            folder = Path(tempfile.mkdtemp(prefix=f"plato-bench-start-{side}-"))
            try:
                marks = marks_of(folder)
            except RuntimeError as error:
                say(f"{side}: {error}; its files are in {folder}")
                return 1
            shutil.rmtree(folder, ignore_errors=True)
            rounds[side].append(marks)
            say(f"round {number}/{options.rounds} {side}: {marks[FIRST_STEP]:.1f} s to the first step of training")
    medians = {side: _medians(marks) for side, marks in rounds.items()}
    ratio = medians["ours"][FIRST_STEP] / medians["bare"][FIRST_STEP]
    for side, title in (("bare", "bare, one after the other"), ("ours", "ours, side by side")):
        print(f"{title:44}{'at (s)':>8}{'since the one before':>24}")
        before = 0.0
        for name, at in sorted(medians[side].items(), key=lambda item: item[1]):
            print(f"  {name:42}{at:>8.1f}{at - before:>24.1f}")
            before = at
    print(f"{'ours/bare':44}{ratio:>8.2f}")
    result = {
        "benchmark": "start_up",
        **now,
        "rounds": options.rounds,
        "rows": {side: {name: round(at, 2) for name, at in marks.items()} for side, marks in medians.items()},
        "each": {side: [round(marks[FIRST_STEP], 2) for marks in rounds[side]] for side in rounds},
        "ours_over_bare": round(ratio, 3),
        "target": TARGET,
        "reached": ratio <= TARGET,
    }
    print(json.dumps(result), flush=True)
    return 0


def _bare(folder: Path) -> dict[str, float]:
    began, lines = _run([sys.executable, str(HERE / BARE)], folder)
    marks = {line.removeprefix("mark ").strip(): at - began for at, line in lines if line.startswith("mark ")}
    return marks | {FIRST_STEP: _first(folder, "stepped")["time"] - began}


def _ours(folder: Path, used: dict[str, float] | None = None) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "flows" / "sweep_and_fetch.py"), "--test-local", "--json", "--seed", "1"]
    began, lines = _run([*command, "--env-name", ENV_NAME, "--max-iterations", "1", "--num-cpus", "2"], folder, used)
    said = {"sweep of": "config checked, sweep process started", "starting": "Ray started; trials' processes asked for"}
    marks = {}
    for start, name in said.items():
        marks |= {mark: at - began for mark, at in [(name, at) for at, line in lines if line.startswith(start)][:1]}
    marks["first trial's process begins"] = _first(folder, "made")["process_began"] - began
    marks["first trial has imported RLlib"] = _first(folder, "made")["time"] - began
    marks |= {name: at - began for name, at in _told_by_prefect(folder).items()}
    return marks | {FIRST_STEP: _first(folder, "stepped")["time"] - began}


def _run(
    command: Sequence[str], folder: Path, used: dict[str, float] | None = None
) -> tuple[float, list[tuple[float, str]]]:
    """Runs a command to its end; returns when it began and its lines, each with the time at which it came.

    Puts into `used`, if that is given, the seconds of CPU until the first step by what a process is.
    """
    whole = environment()
    own = {"PREFECT_HOME": str(folder / "prefect"), FOLDER_VARIABLE: str(folder)}
    own["PYTHONPATH"] = os.pathsep.join([str(HERE), whole["PYTHONPATH"]])
    lines: list[tuple[float, str]] = []
    log = folder / "stdout.txt"
    began = time.time()
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=whole | own, stdout=out, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        stderr = process.stderr

        def read() -> None:
            lines.extend((time.time(), line.rstrip()) for line in stderr)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        if used is not None:
            used |= _cpu_until_first_step(psutil.Process(process.pid), folder)
        try:
            process.wait(300)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(30)
    reader.join(5)
    if process.returncode != 0:
        told = lines[-1][1] if lines else last_line(log)
        raise RuntimeError(f"exit code {process.returncode}: {told}")
    return began, lines


def _cpu_until_first_step(command: psutil.Process, folder: Path) -> dict[str, float]:
    seen: dict[int, tuple[str, float]] = {}
    while command.is_running() and not any(folder.glob("stepped-*.json")):
        for process in [command, *command.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                line, times = " ".join(process.cmdline()), process.cpu_times()
                role = next((role for word, role in ROLES.items() if word in line), "others")
                seen[process.pid] = (role, times.user + times.system)
        time.sleep(0.1)
    return {role: round(sum(s for r, s in seen.values() if r == role), 1) for role in {r for r, _ in seen.values()}}


def _first(folder: Path, what: str) -> dict[str, Any]:
    # The command itself makes one too, to check that it can be.
    trained = [path.name.removeprefix("stepped") for path in folder.glob("stepped-*.json")]
    stamps = [json.loads((folder / f"{what}{rest}").read_text()) for rest in trained]
    if not stamps:
        raise RuntimeError(f"no environment was {what}")
    return min(stamps, key=lambda stamp: stamp["time"])


def _told_by_prefect(folder: Path) -> dict[str, float]:
    """When the flow and its first tasks began and ended, by Prefect's own database."""
    with sqlite3.connect(folder / "prefect" / "prefect.db") as database:
        flow = database.execute("select start_time from flow_run").fetchone()
        tasks = database.execute("select name, start_time, end_time from task_run order by start_time").fetchall()
    marks = {"Prefect's server and flow run started": _epoch(flow[0])}
    for name, start, end in tasks:
        if name.startswith("train"):
            marks["MLflow's parent run open: training may begin"] = _epoch(start)
        elif not marks.keys() & {"MLflow's parent run open: training may begin"}:
            marks[f"task: {name.split('-')[0]}"] = _epoch(end)
    return marks


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    names = [name for name in rounds[0] if all(name in marks for marks in rounds)]
    return {name: statistics.median(marks[name] for marks in rounds) for name in names}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="From the command to the first step of training.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each runs; medians are printed (3)")
    parser.add_argument("--cpu", action="store_true", help="the CPU time of our processes until the first step")
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 1
    return options


if __name__ == "__main__":
    sys.exit(main())

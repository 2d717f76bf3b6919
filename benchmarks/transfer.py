"""Checkpoints to the tracking store and back, beside the least that moves the same files and knows their digests.

::

    python benchmarks/transfer.py                       # 200 MB, and 2000 small files; 3 rounds, medians
    python benchmarks/transfer.py --quick

Up is: hash the files into a manifest and store them (`write_manifest`, `upload_checkpoint`); down is: fetch them
and check every file against the manifest (`download_checkpoint`). Beside a local store stands `cp -r` and the sha256 of
the same files; beside an MLflow server, with the 4 workers that it has by default, a minimal HTTP file server on one
connection that stays open (`benchmarks/file_server.py`), and the same sha256. A rate is megabytes a second; the ratio
is ours over the other's. What a sweep waits for is measured by itself: Tune's loop only links the files (`hold_tree`)
and journals a line. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import end_in_order, show
from movers import Copied, Ours, Sent
from running import QUIET, environment, machine_now, say
from servers import mlflow_server

os.environ.update(QUIET)
HERE = Path(__file__).resolve().parent
TARGETS = {"file, large": 0.7, "file, small": 0.7, "server, large": 0.7, "server, small": 0.3}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    options = _options(argv)
    end_in_order()
    now = machine_now()
    folder = Path(tempfile.mkdtemp(prefix="plato-bench-transfer-"))
    try:
        rows = measure(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    print(json.dumps(summary(rows, now)), flush=True)
    return 0


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Moves both checkpoints through both stores, ours and bare in turn, and returns the medians."""
    large, small = (20, 200) if options.quick else (200, 2000)
    checkpoints = {"large": folder / "large", "small": folder / "small"}
    for number in range(8):
        write(checkpoints["large"] / f"part{number}" / "state.pkl", large * 1_000_000 // 8)
    for number in range(small):
        write(checkpoints["small"] / f"learner{number % 20:02}" / f"weights{number:04}.npy", 4096)
    rows: list[dict[str, Any]] = []
    served = mlflow_server(folder / "server.db", folder / "served", workers=4)
    with served as uri, file_server(folder / "bare-served") as port:
        sides = {
            "file": (Ours(folder, f"sqlite:///{folder / 'file.db'}"), Copied(folder)),
            "server": (Ours(folder, uri), Sent(folder, port)),
        }
        for through, (ours, bare) in sides.items():
            for kind, source in checkpoints.items():
                took: dict[str, list[float]] = {}
                spent: dict[str, list[float]] = {}
                for number in range(options.rounds + 1):  # the first is to warm up
                    for side, mover in (("ours", ours), ("bare", bare)):
                        name = f"{kind}{number}"
                        for way, move in (("up", mover.up), ("down", mover.down)):
                            began, served = time.monotonic(), mover.served_s()
                            move(source, name)
                            if number:
                                took.setdefault(f"{side} {way}", []).append(time.monotonic() - began)
                                spent.setdefault(f"{side} {way}", []).append(mover.served_s() - served)
                        mover.forget(name)
                rows += _rows(through, kind, source, took, spent)
                say(f"{kind}, through a {through}: done")
        holding = {kind: held_s(folder, source) for kind, source in checkpoints.items()}
    for row in rows:
        row["loop ms"] = holding[row["checkpoint"]] * 1000 if row["way"] == "up" else None
    return rows


def _rows(
    through: str, kind: str, source: Path, took: dict[str, list[float]], spent: dict[str, list[float]]
) -> list[dict[str, Any]]:
    files = [path for path in source.rglob("*") if path.is_file() and path.name != "manifest.json"]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    rows: list[dict[str, Any]] = []
    for way in ("up", "down"):
        ours, bare = (statistics.median(took[f"{side} {way}"]) for side in ("ours", "bare"))
        rows.append(
            {
                "store": through,
                "checkpoint": kind,
                "files": len(files),
                "way": way,
                "ours s": ours,
                "bare s": bare,
                "ours MB/s": megabytes / ours,
                "bare MB/s": megabytes / bare,
                "ratio": bare / ours,
                "server's CPU s": statistics.median(spent[f"ours {way}"]) if through == "server" else None,
                "target": TARGETS[f"{through}, {kind}"],
            }
        )
    return rows


def held_s(folder: Path, source: Path) -> float:
    """Returns what Tune's loop does of an upload: it reads the manifest, and holds the files."""
    from plato_core.manifest import read_manifest
    from plato_core.tracking.hold import hold_tree

    took: list[float] = []
    for number in range(3):
        began = time.monotonic()
        read_manifest(source)
        hold_tree(source, folder / "held" / str(number))
        took.append(time.monotonic() - began)
    return statistics.median(took)


def write(path: Path, size: int) -> None:
    """Writes a file that does not compress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[int]:
    """Runs the minimal server, and gives its port."""
    folder.mkdir()
    command = [sys.executable, str(HERE / "file_server.py"), str(folder)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def summary(rows: Sequence[dict[str, Any]], now: dict[str, Any]) -> dict[str, Any]:
    """Returns the benchmark's result, JSON-able."""
    return {
        "benchmark": "transfer",
        **now,
        "rows": list(rows),
        "ratios": {f"{row['store']}, {row['checkpoint']}, {row['way']}": round(row["ratio"], 3) for row in rows},
        "targets": TARGETS,
        "reached": all(row["ratio"] >= row["target"] for row in rows),
    }


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Move checkpoints to the store and back, and compare with bare copies."
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often; medians are printed (3)")
    parser.add_argument("--quick", action="store_true", help="a short try: a tenth of the size, one round")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 1
    return options


if __name__ == "__main__":
    sys.exit(main())

"""Choosing the top run, of one sweep and of a whole experiment, in stores of more and more runs.

::

    python benchmarks/selection.py                      # 100, 10 000 and 100 000 runs, all sides
    python benchmarks/selection.py --runs 10000 --saturated --sides ours
    python benchmarks/selection.py --quick

Ours (`plato_core.fetch`: the best finished run, and its best complete checkpoint, read from the artifacts) beside what
one writes without it: `mlflow.search_runs()` with a pandas sort, and `mlflow.search_runs(order_by=..., max_results=1)`;
both take whatever ranks first, finished or not. Each side is a process of its own that has imported everything and has
asked the store for the experiment before its clock starts; its memory is that process's peak, and how much of it came
with the choice. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import end_in_order, measured, peak_mib, show
from running import machine_now, say
from servers import mlflow_server

RUNS = (100, 10_000, 100_000)
SIDES = ("ours", "order_by", "pandas")
TARGET_S = {"sweep": 0.3, "experiment": 5.0}
FLAT = 1.25


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    options = _options(argv)
    if options.ask:
        print(json.dumps(ask(*options.ask)), flush=True)
        return 0
    end_in_order()
    now = machine_now()
    rows: list[dict[str, Any]] = []
    for count in options.runs:
        folder = Path(tempfile.mkdtemp(prefix="plato-bench-selection-"))
        try:
            rows += measure(folder, count, options)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    print(json.dumps(summary(rows, now, options.saturated)), flush=True)
    return 0


def measure(folder: Path, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fills a store with `count` runs, and has every side choose in it."""
    from fill_store import fill

    began = time.monotonic()
    store = fill(folder, count, saturated=options.saturated)
    size = store.database.stat().st_size / 2**20
    say(f"{store.runs} runs: a store of {size:.0f} MiB, filled in {time.monotonic() - began:.0f} s")
    rows: list[dict[str, Any]] = []
    for through in ("file", "server"):
        store.serve(through == "server")
        for side in (side for side in SIDES if side in options.sides):
            for of in TARGET_S:
                asked = [str(Path(__file__)), "--ask", side, of, store.parent_run_id]
                if through == "file":
                    told = measured([*asked, store.uri], folder, options.limit_s)
                else:  # a new one each time: the one before may still be at a question that nobody waits for
                    with mlflow_server(store.database, store.artifacts) as uri:
                        told = measured([*asked, uri], folder, options.limit_s)
                top = store.top_of_sweep if of == "sweep" else store.top_of_all
                rows.append(
                    {
                        "side": side,
                        "of": of,
                        "through": through,
                        "runs": store.runs,
                        "first s": told and told["first_s"],
                        "again s": told and told["again_s"],
                        "peak MiB": told and told["peak_mib"],
                        "added MiB": told and told["added_mib"],
                        "top run": "over the limit"
                        if told is None
                        else "right"
                        if told["run_id"] == top
                        else "another",
                    }
                )
                took = f"over {options.limit_s:.0f} s" if told is None else f"{told['first_s']:.2f} s"
                say(f"{side}, {of}, through a {through}: {took}")
    return rows


def ask(side: str, of: str, parent_run_id: str, uri: str) -> dict[str, Any]:
    """Chooses twice in this process, and returns what that took."""
    from fill_store import EXPERIMENT

    from plato_core.tracking.client import make_client

    client = make_client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    choose = chooser(side, uri, experiment.experiment_id, parent_run_id if of == "sweep" else None)
    before = peak_mib()
    took: list[float] = []
    run_id = ""
    for _ in range(2):
        began = time.monotonic()
        run_id = choose()
        took.append(time.monotonic() - began)
        if took[0] > 10.0:
            break
    return {
        "first_s": took[0],
        "again_s": took[-1] if len(took) > 1 else None,
        "run_id": run_id,
        "peak_mib": peak_mib(),
        "added_mib": peak_mib() - before,
    }


def chooser(side: str, uri: str, experiment_id: str, parent_run_id: str | None) -> Callable[[], str]:
    """Returns what chooses the top run, and returns its id, in the manner of a side."""
    from fill_store import EXPERIMENT, METRIC

    if side == "ours":
        from plato_core import fetch
        from plato_core.tracking import leading, queries  # noqa: F401
        from plato_core.tracking.client import make_client

        client = make_client(uri)
        if parent_run_id:
            return lambda: fetch.best_of_sweep(client, experiment_id, parent_run_id, METRIC, "max").run.run_id
        return lambda: fetch.best_of_experiment(client, EXPERIMENT, experiment_id, METRIC, "max").run.run_id

    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(uri)
    condition = f"tags.mlflow.parentRunId = '{parent_run_id}'" if parent_run_id else ""
    column = f"metrics.{METRIC}"

    def searched(**how: Any) -> pd.DataFrame:
        found = mlflow.search_runs([experiment_id], condition, **how)
        assert isinstance(found, pd.DataFrame)
        return found

    if side == "pandas":
        return lambda: str(searched().sort_values(column, ascending=False)["run_id"].iloc[0])
    return lambda: str(searched(order_by=[f"{column} DESC"], max_results=1)["run_id"].iloc[0])


def summary(rows: Sequence[dict[str, Any]], now: dict[str, Any], saturated: bool) -> dict[str, Any]:
    """Returns the benchmark's result, JSON-able."""
    ours = [row for row in rows if row["side"] == "ours"]
    most = max((row["runs"] for row in ours), default=0)
    slowest = {of: [row["first s"] for row in ours if row["of"] == of and row["runs"] == most] for of in TARGET_S}
    took = {of: max(times) for of, times in slowest.items() if times and None not in times}
    peaks: dict[str, list[float]] = {}  # by the way to the store: each needs other packages
    for row in ours:
        if row["peak MiB"]:
            peaks.setdefault(row["through"], []).append(row["peak MiB"])
    growth = max((max(each) / min(each) for each in peaks.values()), default=None)
    right = bool(ours) and all(row["top run"] == "right" for row in ours)
    return {
        "benchmark": "selection",
        **now,
        "saturated": saturated,
        "rows": list(rows),
        "most_runs": most,
        "seconds": took,
        "targets_s": TARGET_S,
        "peak_memory_over_least": growth,
        "target_memory_over_least": FLAT,
        "chose_right": right,
        "reached": right
        and growth is not None
        and growth <= FLAT
        and len(took) == len(TARGET_S)
        and all(took[of] <= TARGET_S[of] for of in took),
    }


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Choose the top run among many, in ours and in MLflow's ways.")
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS, help="how many the stores hold (100 10000 100000)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="which to run (all)")
    parser.add_argument("--saturated", action="store_true", help="every tenth run has the best value, 500")
    parser.add_argument("--limit-s", type=float, default=60.0, help="when a side's one choice is given up (60)")
    parser.add_argument("--quick", action="store_true", help="a short try: 100 and 2000 runs")
    parser.add_argument("--ask", nargs=4, metavar=("SIDE", "OF", "PARENT", "URI"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.runs = (100, 2000)
    return options


if __name__ == "__main__":
    sys.exit(main())

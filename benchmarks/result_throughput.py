"""Results a second through Ray Tune from many trials on one node that report as fast as they can: ours against none.

::

    python benchmarks/result_throughput.py             # 3 rounds, the default SQLite store
    python benchmarks/result_throughput.py --server    # an MLflow server instead
    python benchmarks/result_throughput.py --quick

After Ray's release test `test_result_throughput_single_node`. There 96 trials run at once on 96 CPUs, each reports 50
times a second for 100 s, Tune takes results from a buffer of 1000 a call, and all of it has to end within 120 s, the
start of the processes included. Here there are 96 trials, at most 16 of them at once on 2 CPUs, in processes that the
others take over; they report without a pause, and Tune takes each result by itself (its default, which Population Based
Training needs). The clock starts at the first result. As there, a result has one metric beside those that Tune adds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from running import machine_now, say
from servers import mlflow_server
from tune_load import Load, Rate, measure, start_ray

TARGET = 0.95


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    options = _options(argv)
    now = machine_now()
    load = Load(options.trials, options.results, options.actors, limit_s=120.0, metrics=1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plato-bench-store-")))
        uri = f"sqlite:///{folder}/mlflow.db"
        if options.server:
            uri = stack.enter_context(mlflow_server(folder / "server.db", folder / "artifacts", elsewhere=True))
        start_ray()
        for side in ("none", "ours"):
            measure(side, Load(options.actors, 20, options.actors, 60.0), uri)  # to warm up
        rates, ratios = [_told(measure("none", load, uri))], []
        for _ in range(options.rounds):
            ours, after = _told(measure("ours", load, uri)), _told(measure("none", load, uri))
            ratios.append(ours.per_s / statistics.mean([rates[-1].per_s, after.per_s]))
            rates += [ours, after]
    none, ours = ([rate for rate in rates if rate.side == side] for side in ("none", "ours"))
    ratio = statistics.median(ratios)
    print(f"{'':24}{'none':>10}{'ours':>10}{'ours/none':>12}")
    medians = [statistics.median(rate.per_s for rate in side) for side in (none, ours)]
    print(f"{'results a second':24}{medians[0]:>10.1f}{medians[1]:>10.1f}{ratio:>12.3f}")
    drain_s = statistics.median(rate.drain_s for rate in ours)
    print(f"{'sent after the end (s)':24}{'-':>10}{drain_s:>10.1f}")
    result = {
        "benchmark": "result_throughput",
        **now,
        "rounds": options.rounds,
        "load": {"trials": options.trials, "results": options.results, "actors": options.actors, "metrics": 1},
        "store": "MLflow server" if options.server else "SQLite",
        "rows": [
            {
                "side": rate.side,
                "per_s": round(rate.per_s, 1),
                "seconds": round(rate.seconds, 2),
                "all": rate.complete,
                "loop_us": round(rate.loop_us),
            }
            for rate in rates
        ],
        "ours_over_none": round(ratio, 3),
        "ours_over_none_each": [round(each, 3) for each in ratios],
        "drain_s": round(drain_s, 1),
        "target": TARGET,
        "reached": ratio >= TARGET,
    }
    print(json.dumps(result), flush=True)
    return 0


def _told(rate: Rate) -> Rate:
    all_there = "" if rate.complete else "; NOT ALL SENT"
    say(
        f"{rate.side}: {rate.per_s:.1f} results a second ({rate.results} in {rate.seconds:.1f} s{all_there}); "
        f"the loop took {rate.loop_us:.0f} us of CPU for each"
    )
    return rate


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Results a second through Tune from trials that only report.")
    parser.add_argument("--rounds", type=int, default=3, help="how often ours runs (3)")
    parser.add_argument("--trials", type=int, default=96, help="trials (96)")
    parser.add_argument("--results", type=int, default=150, help="results of each (150)")
    parser.add_argument("--actors", type=int, default=16, help="trials at the same time (16)")
    parser.add_argument("--server", action="store_true", help="track to an MLflow server instead of SQLite")
    parser.add_argument("--quick", action="store_true", help="a short try")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.trials, options.results, options.actors = 1, 8, 60, 4
    return options


if __name__ == "__main__":
    sys.exit(main())

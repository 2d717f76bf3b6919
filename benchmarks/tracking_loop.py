"""Results a second through Ray Tune with the tracking server near and far: ours, none, and Ray's own MLflow callback.

::

    python benchmarks/tracking_loop.py                    # an added round trip of 0, 20 and 100 ms, 3 rounds
    python benchmarks/tracking_loop.py --delays-ms 20     # one of them
    python benchmarks/tracking_loop.py --quick

64 trivial trials report 40 metrics each time, as fast as Tune takes them, 16 at a time in processes that the others
take over. No tracking runs before and after ours, whose rate is held against the mean of the two.
The stock callback sends each metric by a request of its own and is stopped after some seconds: its rate is that of
the results until then.
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
from typing import Any

from running import machine_now, say
from servers import cpu_s, delayed, mlflow_server, port_of
from tune_load import Load, Rate, measure, start_ray

TARGET = 0.97


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    options = _options(argv)
    now = machine_now()
    load = Load(options.trials, options.results, options.actors, limit_s=120.0)
    stock_load = Load(options.trials, options.results, options.actors, limit_s=options.stock_s)
    rates: dict[float, list[Rate]] = {}
    ratios: dict[float, list[float]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plato-bench-store-")))
        server = stack.enter_context(mlflow_server(folder / "server.db", folder / "artifacts", elsewhere=True))
        start_ray()
        for side in ("none", "ours"):
            measure(side, Load(options.actors, 20, options.actors, 60.0), server)  # to warm up
        for delay_ms in options.delays_ms:
            with delayed(port_of(server), delay_ms / 1000) as port:
                uri = f"http://127.0.0.1:{port}"
                before = _told(measure("none", load, uri), delay_ms)
                rates[delay_ms], ratios[delay_ms] = [before], []
                for _ in range(options.rounds):
                    cpu = cpu_s(server)
                    ours = _told(measure("ours", load, uri), delay_ms)
                    say(f"  the server took {cpu_s(server) - cpu:.1f} s of CPU for it")
                    after = _told(measure("none", load, uri), delay_ms)
                    rates[delay_ms] += [ours, after]
                    ratios[delay_ms].append(ours.per_s / statistics.mean([before.per_s, after.per_s]))
                    before = after
                if options.stock_s:
                    rates[delay_ms].append(_told(measure("stock", stock_load, uri), delay_ms))
    rows = [_row(delay_ms, rates[delay_ms], ratios[delay_ms]) for delay_ms in options.delays_ms]
    print(_table(rows))
    print(
        json.dumps(
            {
                "benchmark": "tracking_loop",
                **now,
                "rounds": options.rounds,
                "load": {"trials": options.trials, "results": options.results, "actors": options.actors, "metrics": 40},
                "rows": rows,
                "target": TARGET,
                "reached": all(row["ours_over_none"] >= TARGET for row in rows),
            }
        ),
        flush=True,
    )
    return 0


def _told(rate: Rate, delay_ms: float) -> Rate:
    all_there = "" if rate.complete else ", NOT ALL SENT"
    say(
        f"{delay_ms:g} ms, {rate.side}: {rate.per_s:.1f} results a second ({rate.results} in {rate.seconds:.1f} s; "
        f"then {rate.drain_s:.1f} s to the end{all_there}); the loop took {rate.loop_us:.0f} us of CPU for each"
    )
    return rate


def _row(delay_ms: float, rates: Sequence[Rate], ratios: Sequence[float]) -> dict[str, Any]:
    def middle(side: str) -> float | None:
        values = [rate.per_s for rate in rates if rate.side == side]
        return round(statistics.median(values), 2) if values else None

    ours, stock = middle("ours"), middle("stock")
    return {
        "delay_ms": delay_ms,
        "none_per_s": middle("none"),
        "ours_per_s": ours,
        "stock_per_s": stock,
        "ours_over_none": round(statistics.median(ratios), 3),
        "ours_over_none_each": [round(ratio, 3) for ratio in ratios],
        "ours_over_stock": round(ours / stock, 1) if ours and stock else None,
        "loop_us": {
            side: round(statistics.median([rate.loop_us for rate in rates if rate.side == side]))
            for side in sorted({rate.side for rate in rates})
        },
        "drain_s": round(statistics.median(rate.drain_s for rate in rates if rate.side == "ours"), 1),
        "complete": all(rate.complete for rate in rates),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("round trip", "none", "ours", "stock", "ours/none", "ours/stock", "sent after")
    lines = ["results a second", "".join(f"{head:>12}" for head in heads)]
    for row in rows:
        cells = [
            f"{row['delay_ms']:g} ms",
            f"{row['none_per_s']:.1f}",
            f"{row['ours_per_s']:.1f}",
            "-" if row["stock_per_s"] is None else f"{row['stock_per_s']:.2f}",
            f"{row['ours_over_none']:.3f}",
            "-" if row["ours_over_stock"] is None else f"{row['ours_over_stock']:.0f}",
            f"{row['drain_s']:.1f} s",
        ]
        lines.append("".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Results a second through Tune, with and without tracking.")
    parser.add_argument("--delays-ms", type=float, nargs="+", default=[0.0, 20.0, 100.0], help="added round trips")
    parser.add_argument("--rounds", type=int, default=3, help="how often ours runs at each delay (3)")
    parser.add_argument("--trials", type=int, default=64, help="trials (64)")
    parser.add_argument("--results", type=int, default=100, help="results of each (100)")
    parser.add_argument("--actors", type=int, default=16, help="trials at the same time (16)")
    parser.add_argument(
        "--stock-s", type=float, default=20.0, help="seconds for the stock callback; 0 leaves it out (20)"
    )
    parser.add_argument("--quick", action="store_true", help="a short try")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.trials, options.results, options.actors, options.stock_s = 1, 8, 30, 4, 5.0
    return options


if __name__ == "__main__":
    sys.exit(main())

"""What a result costs Tune's loop, and what memory its process takes, as trials become many.

::

    python benchmarks/scaling.py                        # 8, 64 and 512 trials of 40 results, with and without tracking
    python benchmarks/scaling.py --quick

The trials only report (the contract's 34 metrics and one tuned value), eight at a time, the next in the process of one
that is done, and each has its `result.json` and `progress.csv` on both sides, as in a sweep. Tracking is ours, into a
store of SQLite. Each line is a process of its own with a Ray of its own. The clock runs from the first result to the
last; what is sent to the store after that is `drain s`. Early is the second tenth of the results (in the first, Ray's
processes start), late the last tenth: a step that costs more as the sweep grows older shows as late over early. Then
`tracking ms` is what the tracking callback itself takes of a result. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import end_in_order, measured, peak_mib, show
from running import QUIET, machine_now, say

if TYPE_CHECKING:
    from ray import tune

TRIALS = (8, 64, 512)
ACTORS = 8
SLOTS = 2
LIMIT_S = 300.0
LINEAR = 1.25
"""A result may cost so much more among many trials than among 64, or late than early; below that is noise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    options = _options(argv)
    if options.one:
        trials, results, tracked = options.one
        print(json.dumps(run(int(trials), int(results), tracked == "on")), flush=True)
        return 0
    end_in_order()
    now = machine_now()
    rows: list[dict[str, Any]] = []
    for trials in options.trials:
        for tracking in ("off", "on"):
            folder = Path(tempfile.mkdtemp(prefix="plato-bench-scaling-"))
            try:
                asked = [str(Path(__file__)), "--one", str(trials), str(options.results), tracking]
                told = measured(asked, folder, LIMIT_S)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            if told is None:
                say(f"{trials} trials, tracking {tracking}: over {LIMIT_S:.0f} s")
                continue
            rows.append({"tracking": tracking, "trials": trials, **told})
            say(f"{trials} trials, tracking {tracking}: {told['loop s']:.1f} s")
    show(rows)
    print(json.dumps(summary(rows, now)), flush=True)
    return 0


def run(trials: int, results: int, tracked: bool) -> dict[str, Any]:
    """Runs trials through Tune in this process."""
    os.environ.update(QUIET)
    from plato_core.sweep.environment import prepare_environment

    prepare_environment(local=True)
    import ray
    from ray import tune
    from scaling_parts import Stamps, Trivial, tracking_callback

    from plato_core.sweep.logs import CsvLog, JsonLog

    folder = Path.cwd()
    ray.init(
        address="local",
        num_cpus=SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=128 * 2**20,
        runtime_env={
            "env_vars": {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ["PYTHONPATH"]))}
        },
    )
    before, after, last = Stamps(), Stamps(), Stamps()
    tracking = tracking_callback(folder) if tracked else None
    callbacks: list[tune.Callback] = [before, *([tracking] if tracking else []), after, JsonLog(), CsvLog(), last]
    tuner = tune.Tuner(
        tune.with_resources(Trivial, {"cpu": SLOTS / ACTORS}),
        param_space={"results": results},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=ACTORS, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    at_start = peak_mib()
    tuner.fit()
    ended = time.monotonic()
    complete = tracking.drain(60.0, limit_s=lambda: LIMIT_S).complete if tracking else True
    drained = time.monotonic()
    ray.shutdown()
    stamps = last.stamps
    tenth = len(stamps) // 10
    costs = [there - here for here, there in zip(before.stamps, after.stamps, strict=True)]
    each = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    early = (stamps[2 * tenth] - stamps[tenth]) / tenth
    late = (stamps[-1] - stamps[-1 - tenth]) / tenth
    return {
        "results": len(stamps),
        "loop s": stamps[-1] - stamps[0],
        "ms a result": each * 1000,
        "early ms": early * 1000,
        "late ms": late * 1000,
        "late/early": late / early,
        "tracking ms": statistics.fmean(costs) * 1000,
        "tracking late/early": statistics.median(costs[-tenth:]) / statistics.median(costs[tenth : 2 * tenth]),
        "peak MiB": peak_mib(),
        "added MiB": peak_mib() - at_start,
        "drain s": drained - ended if tracked else None,
        "complete": complete and len(stamps) == trials * results,
    }


def summary(rows: Sequence[dict[str, Any]], now: dict[str, Any]) -> dict[str, Any]:
    """Returns the benchmark's result, JSON-able."""
    growth: dict[str, float] = {}
    for tracking in ("off", "on"):
        costs = {row["trials"]: row["ms a result"] for row in rows if row["tracking"] == tracking}
        middle = sorted(costs)[len(costs) // 2] if costs else 0
        if middle:
            growth[tracking] = round(costs[max(costs)] / costs[middle], 3)
    ratios = {
        trials: round(found["off"] / found["on"], 3)
        for trials in sorted({row["trials"] for row in rows})
        if len(found := {row["tracking"]: row["ms a result"] for row in rows if row["trials"] == trials}) == 2
    }
    older = max((row["tracking late/early"] for row in rows if row["tracking"] == "on"), default=0.0)
    return {
        "benchmark": "scaling",
        **now,
        "rows": list(rows),
        "rate_over_no_tracking": ratios,
        "cost_of_a_result_most_over_middle": growth,
        "tracking_cost_late_over_early": round(older, 3),
        "target": LINEAR,
        "reached": bool(growth)
        and all(row["complete"] for row in rows)
        and growth.get("on", 9.0) <= max(LINEAR, LINEAR * growth.get("off", 1.0))
        and older <= LINEAR,
    }


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of a result and memory, as trials become many.")
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS, help="how many (8 64 512)")
    parser.add_argument("--results", type=int, default=40, help="of each (40)")
    parser.add_argument("--quick", action="store_true", help="a short try: 8 and 32 trials")
    parser.add_argument("--one", nargs=3, metavar=("TRIALS", "RESULTS", "TRACKING"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.trials, options.results = (8, 32), 20
    return options


if __name__ == "__main__":
    sys.exit(main())

"""The main job beside the same sweep written with stock parts, and with peers: wall time, fit time, efficiency.

::

    python benchmarks/main_job.py                       # the shipped --test-local against the stock sweep
    python benchmarks/main_job.py --rounds 3            # medians of three rounds
    python benchmarks/main_job.py --stop-when first     # every side ends at the first trial that is solved
    python benchmarks/main_job.py --same-settings       # with the stock sweep's hyperparameters and network
    python benchmarks/main_job.py --sides stock sb3 ours --peers .venv-peers/bin/python      # as `make bench` does

Each run has a fresh folder, and ours a fresh PREFECT_HOME. The sides run in turn, never at the same time. `sb3` is
Stable-Baselines3 with Optuna, in a virtual environment of its own. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from main_job_sides import RUN, Measured
from running import Memory, machine_now, say

TARGETS = {"stock": 0.30, "sb3": 1.0}
"""Of our wall time over another side's."""
NUMBERS = (
    "wall_s", "fit_s", "training_slot_s", "efficiency", "iterations", "env_steps", "steps_per_s", "best_return",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code: 0 if every run ended well."""
    options = _options(argv)
    now = machine_now()
    for line in differences(options):
        say(line)
    memory = Memory() if options.memory else None
    runs: list[Measured] = []
    for number in range(1, options.rounds + 1):
        for side in options.sides:
            label = f"round {number}/{options.rounds} {side}"
            folder = Path(tempfile.mkdtemp(prefix=f"plato-bench-{side}-"))
            try:
                measured = RUN[side](folder, options, label, memory)
            except RuntimeError as error:
                say(f"{label}: {error}; its files are in {folder}")
                return 1
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
            runs.append(measured)
            say(f"{label}: {measured.wall_s:.1f} s, best return {measured.best_return:.1f}")
    medians = {side: median([run for run in runs if run.side == side]) for side in options.sides}
    print(table(medians))
    if memory is not None:
        print(f"memory: a trial's process held up to {memory.trial / 2**20:.0f} MiB, all of ours {memory.total_mib()}")
    print(json.dumps(summary(options, medians, runs, memory, now)), flush=True)
    return 0


def median(runs: Sequence[Measured]) -> Measured:
    """Returns the median of each number; a checkpoint counts if every run left one."""
    middle: dict[str, Any] = {name: statistics.median(getattr(run, name) for run in runs) for name in NUMBERS}
    return Measured(
        side=runs[0].side,
        slots=runs[0].slots,
        checkpoint_in_mlflow=all(run.checkpoint_in_mlflow for run in runs),
        **middle,
    )


def ratios(medians: Mapping[str, Measured], other: str) -> dict[str, float | None]:
    """Returns ours over another side's for each number."""
    ours, theirs = medians["ours"], medians[other]
    return {
        name: round(getattr(ours, name) / getattr(theirs, name), 3) if getattr(theirs, name) else None
        for name in NUMBERS
    }


def others(medians: Mapping[str, Measured]) -> list[str]:
    """Returns the sides that ours can be held against; none unless it has run."""
    return [side for side in medians if side != "ours"] if "ours" in medians else []


def table(medians: Mapping[str, Measured]) -> str:
    """Returns the medians of all sides and our ratios to the others as text."""
    titles = {
        "wall_s": "wall time (s)",
        "fit_s": "fit time (s)",
        "training_slot_s": "training slot time (s)",
        "efficiency": "sweep efficiency",
        "iterations": "iterations",
        "env_steps": "environment steps",
        "steps_per_s": "steps per fit second",
        "best_return": "best mean return",
    }
    against = {f"ours/{other}": ratios(medians, other) for other in others(medians)}
    lines = [f"{'':26}" + "".join(f"{side:>12}" for side in [*medians, *against])]
    for name, title in titles.items():
        digits = 2 if name == "efficiency" else 0 if name in ("iterations", "env_steps", "steps_per_s") else 1
        cells = "".join(f"{getattr(measured, name):>12.{digits}f}" for measured in medians.values())
        both = [f"{ratio[name]:>12.2f}" if ratio[name] is not None else f"{'-':>12}" for ratio in against.values()]
        lines.append(f"{title:26}{cells}{''.join(both)}")
    has = "".join(f"{'yes' if measured.checkpoint_in_mlflow else 'no':>12}" for measured in medians.values())
    lines.append(f"{'checkpoint in MLflow':26}{has}")
    return "\n".join(lines)


def summary(
    options: argparse.Namespace,
    medians: Mapping[str, Measured],
    runs: Sequence[Measured],
    memory: Memory | None,
    now: dict[str, Any],
) -> dict[str, Any]:
    """Returns the benchmark's result, JSON-able."""
    result: dict[str, Any] = {
        "benchmark": "main_job",
        **now,
        "rounds": options.rounds,
        "seed": options.seed,
        "population": options.population,
        "stop_when": options.stop_when,
        "same_settings": options.same_settings,
        **{side: _rounded(measured) for side, measured in medians.items()},
        "ours_over": {other: ratios(medians, other) for other in others(medians)},
        "targets": TARGETS,
        "reached": all((ratios(medians, other)["wall_s"] or 0.0) <= TARGETS[other] for other in others(medians)),
        "runs": [_rounded(run) for run in runs],
    }
    if memory is not None:
        result["memory"] = {"trial_bytes": memory.trial, "total_bytes": memory.total}
    return result


def differences(options: argparse.Namespace) -> list[str]:
    """Returns what differs between the two sides, a line each."""
    settings = (
        "both sides: the hyperparameters, network and search space of the stock sweep (benchmarks/same_settings.yaml)"
        if options.same_settings
        else "ours: the hyperparameters and network of the preset test-local; the stock sweep has its own "
        "(--same-settings takes those for both)"
    )
    ends = (
        "all sides: each trial runs to its own end (--stop-when all)"
        if options.stop_when == "all"
        else "all sides: the whole sweep ends at the first trial that reaches 475 (--stop-when first)"
    )
    return [
        settings,
        ends,
        "ours: the mean return is over the last 20 episodes or more; the stock's is RLlib's value of one iteration",
        "ours: a fresh PREFECT_HOME each time, with a copy of the database that set-up made; the stock sweep has none",
        "ours: fit time counts from the moment at which trials may train; Ray and the trials' processes load while "
        "Prefect and MLflow start. The stock's counts from Tuner.fit on. The wall time has it all, on both sides",
        "efficiency: training seconds x CPUs allotted, over slots x fit seconds. It says how much of the time trials "
        "were training, not how busy the CPUs were: a trial of ours that shares CPUs is allotted one while it trains; "
        "its waits for its turn do not count. Steps per fit second show the work done",
        "stock: an exploited trial goes on from its donor's iteration and training time, and both are summed up so; "
        "its environment steps are iterations x 2048",
        "sb3: rl_zoo3's tuned settings; trials are not perturbed but sampled, and there is no tracking but Optuna's "
        "database; a trial is judged every 8192 steps, and its iterations are rollouts of 256",
    ]


def _rounded(measured: Measured) -> dict[str, Any]:
    return {name: round(v, 3) if isinstance(v, float) else v for name, v in asdict(measured).items()}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the main job and the stock sweep in turn, and compare them.")
    parser.add_argument("--rounds", type=int, default=1, help="how often each runs; medians are printed (1)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of ours; the stock sweep has none (1)")
    parser.add_argument(
        "--stop-when", choices=("first", "all"), default="all", help="when a sweep ends, on every side (all)"
    )
    parser.add_argument(
        "--same-settings", action="store_true", help="run ours with the stock sweep's hyperparameters and network"
    )
    parser.add_argument("--population", type=int, default=4, help="trials of each sweep (4)")
    parser.add_argument("--sides", nargs="+", choices=list(RUN), default=["stock", "ours"], help="which (stock ours)")
    parser.add_argument("--peers", help="Python of the virtual environment that has stable-baselines3 and optuna")
    parser.add_argument("--memory", action="store_true", help="sample the memory of our processes too")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.population < 1:
        parser.error("--rounds and --population take a number of at least 1")
    if "sb3" in options.sides:
        if options.peers is None or shutil.which(options.peers) is None:
            parser.error("--sides sb3 needs --peers .venv-peers/bin/python, an environment that `make peers` makes")
        if options.population != 4:
            parser.error("the side sb3 has 4 trials; leave --population out")
        options.peers = str(Path(options.peers).absolute())
    return options


if __name__ == "__main__":
    sys.exit(main())

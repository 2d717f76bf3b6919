"""The main job beside the same sweep written with stock parts: wall time, fit time and sweep efficiency.

::

    python benchmarks/main_job.py                       # the shipped --test-local against the stock sweep
    python benchmarks/main_job.py --rounds 3            # medians of three rounds
    python benchmarks/main_job.py --same-settings       # with the stock sweep's hyperparameters and network

Each run has a fresh folder, and ours a fresh PREFECT_HOME. The two run in turn, never at the same time. The last line
of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from running import QUIET, Memory, machine, run_command, say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STOCK_SLOTS = 2
STOCK_BATCH = 2048
NUMBERS = (
    "wall_s", "fit_s", "training_slot_s", "efficiency", "iterations", "env_steps", "steps_per_s", "best_return",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one run took.

    Attributes:
        side: `stock` or `ours`.
        wall_s: Seconds of the whole command, measured from outside.
        fit_s: Seconds in which trials might train, by the side's own clock.
        training_slot_s: Sum over trials of training seconds x CPUs allotted.
        slots: CPUs that the trials might use.
        efficiency: `training_slot_s` over `slots` x `fit_s`.
        iterations: Training iterations of all trials.
        env_steps: Environment steps of all trials; the stock's are its iterations times its batch.
        steps_per_s: `env_steps` over `fit_s`.
        best_return: The winner's mean return.
        checkpoint_in_mlflow: Whether the winner's run in MLflow holds a checkpoint.
    """

    side: str
    wall_s: float
    fit_s: float
    training_slot_s: float
    slots: int
    efficiency: float
    iterations: int
    env_steps: int
    steps_per_s: float
    best_return: float
    checkpoint_in_mlflow: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code: 0 if every run ended well."""
    options = _options(argv)
    say(machine())
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is not quiet (load {load:.1f}): these numbers will not be comparable")
    for line in differences(options):
        say(line)
    memory = Memory() if options.memory else None
    runs: list[Measured] = []
    for number in range(1, options.rounds + 1):
        for side in options.sides:
            label = f"round {number}/{options.rounds} {side}"
            folder = Path(tempfile.mkdtemp(prefix=f"plato-bench-{side}-"))
            try:
                run = run_stock if side == "stock" else run_ours
                measured = run(folder, options, label, memory)
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
    print(json.dumps(summary(options, medians, runs, memory, load)), flush=True)
    return 0


def run_stock(folder: Path, options: argparse.Namespace, label: str, memory: Memory | None) -> Measured:
    """Runs the stock sweep in `folder`."""
    command = [sys.executable, str(HERE / "stock_sweep.py"), str(folder), str(options.population)]
    wall_s, told = run_command(command, folder, {}, label)
    return Measured(
        side="stock",
        wall_s=wall_s,
        fit_s=told["fit_s"],
        training_slot_s=told["trained_slot_s"],
        slots=STOCK_SLOTS,
        efficiency=told["trained_slot_s"] / (STOCK_SLOTS * told["fit_s"]),
        iterations=told["iterations"],
        env_steps=told["iterations"] * STOCK_BATCH,
        steps_per_s=told["iterations"] * STOCK_BATCH / told["fit_s"],
        best_return=told["best"],
        checkpoint_in_mlflow=told["checkpoint_in_mlflow"],
    )


def run_ours(folder: Path, options: argparse.Namespace, label: str, memory: Memory | None) -> Measured:
    """Runs the sweep in `folder` by the command that a user types."""
    command = [sys.executable, str(ROOT / "flows" / "sweep_and_fetch.py"), *our_flags(options)]
    sample = memory.sample if memory is not None else None
    wall_s, told = run_command(command, folder, {"PREFECT_HOME": str(folder / "prefect")}, label, sample)
    trained, has_checkpoint = read_store(told["tracking_uri"], told["parent_run_id"], told["top_run_id"])
    env_steps = int(sum(metrics["num_env_steps_sampled"] for metrics in trained))
    return Measured(
        side="ours",
        wall_s=wall_s,
        fit_s=told["fit_s"],
        training_slot_s=told["training_slot_s"],
        slots=told["slots"],
        efficiency=told["training_slot_s"] / (told["slots"] * told["fit_s"]),
        iterations=int(sum(metrics["training_iteration"] for metrics in trained)),
        env_steps=env_steps,
        steps_per_s=env_steps / told["fit_s"],
        best_return=told["rank_value"],
        checkpoint_in_mlflow=has_checkpoint,
    )


def our_flags(options: argparse.Namespace) -> list[str]:
    """Returns the flags that ours is run with."""
    flags = ["--test-local", "--json", "--seed", str(options.seed), "--stop-when", options.stop_when]
    if options.population != 4:
        flags += ["--num-tune-samples", str(options.population)]
    if len(psutil.Process().cpu_affinity() if sys.platform == "linux" else range(os.cpu_count() or 1)) > STOCK_SLOTS:
        flags += ["--num-cpus", str(STOCK_SLOTS)]  # the stock sweep takes two, however many there are
    if options.same_settings:
        flags += ["--config", str(HERE / "same_settings.yaml")]
    return flags


def read_store(tracking_uri: str, parent_run_id: str, top_run_id: str) -> tuple[list[Mapping[str, float]], bool]:
    """Returns the latest metrics of each trial, and whether the top run holds a checkpoint."""
    os.environ.update(QUIET)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiment = client.get_run(parent_run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent_run_id}'")
    artifacts = client.list_artifacts(top_run_id)
    return [child.data.metrics for child in children], any("checkpoint" in artifact.path for artifact in artifacts)


def median(runs: Sequence[Measured]) -> Measured:
    """Returns the median of each number; a checkpoint counts if every run left one."""
    middle: dict[str, Any] = {name: statistics.median(getattr(run, name) for run in runs) for name in NUMBERS}
    return Measured(
        side=runs[0].side,
        slots=runs[0].slots,
        checkpoint_in_mlflow=all(run.checkpoint_in_mlflow for run in runs),
        **middle,
    )


def ratios(medians: Mapping[str, Measured]) -> dict[str, float | None]:
    """Returns ours over the stock's for each number; empty unless both have run."""
    if len(medians) < 2:
        return {}
    ours, stock = medians["ours"], medians["stock"]
    return {
        name: round(getattr(ours, name) / getattr(stock, name), 3) if getattr(stock, name) else None for name in NUMBERS
    }


def table(medians: Mapping[str, Measured]) -> str:
    """Returns the medians of both sides and their ratio as text."""
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
    ratio = ratios(medians)
    lines = [f"{'':26}" + "".join(f"{side:>12}" for side in medians) + f"{'ours/stock':>12}" * bool(ratio)]
    for name, title in titles.items():
        digits = 2 if name == "efficiency" else 0 if name in ("iterations", "env_steps", "steps_per_s") else 1
        cells = "".join(f"{getattr(measured, name):>12.{digits}f}" for measured in medians.values())
        both = "" if not ratio else f"{ratio[name]:>12.2f}" if ratio[name] is not None else f"{'-':>12}"
        lines.append(f"{title:26}{cells}{both}")
    has = "".join(f"{'yes' if measured.checkpoint_in_mlflow else 'no':>12}" for measured in medians.values())
    lines.append(f"{'checkpoint in MLflow':26}{has}")
    return "\n".join(lines)


def summary(
    options: argparse.Namespace,
    medians: Mapping[str, Measured],
    runs: Sequence[Measured],
    memory: Memory | None,
    load: float,
) -> dict[str, Any]:
    """Returns the benchmark's result, JSON-able."""
    result: dict[str, Any] = {
        "benchmark": "main_job",
        "machine": machine(),
        "load_at_start": round(load, 2),
        "rounds": options.rounds,
        "seed": options.seed,
        "population": options.population,
        "stop_when": options.stop_when,
        "same_settings": options.same_settings,
        **{side: _rounded(measured) for side, measured in medians.items()},
        "ours_over_stock": ratios(medians),
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
        "ours: each trial runs to its own end (--stop-when all), as in the stock sweep"
        if options.stop_when == "all"
        else "ours: the whole sweep ends at the first trial that reaches 475 (--stop-when first); "
        "in the stock sweep each trial runs to its own end"
    )
    return [
        settings,
        ends,
        "ours: the mean return is over the last 20 episodes or more; the stock's is RLlib's value of one iteration",
        "ours: a fresh PREFECT_HOME each time, so Prefect makes its database anew; the stock sweep has no Prefect",
        "ours: fit time counts from the moment at which trials may train; Ray and the trials' processes load while "
        "Prefect and MLflow start. The stock's counts from Tuner.fit on. The wall time has it all, on both sides",
        "efficiency: training seconds x CPUs allotted, over slots x fit seconds. It says how much of the time trials "
        "were training, not how busy the CPUs were: ours keeps all trials resident on shared CPUs, and a trial's "
        "seconds include its waits for the others. Steps per fit second show the work done",
        "stock: an exploited trial goes on from its donor's iteration and training time, and both are summed up so; "
        "its environment steps are iterations x 2048",
    ]


def _rounded(measured: Measured) -> dict[str, Any]:
    return {name: round(v, 3) if isinstance(v, float) else v for name, v in asdict(measured).items()}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the main job and the stock sweep in turn, and compare them.")
    parser.add_argument("--rounds", type=int, default=1, help="how often each runs; medians are printed (1)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of ours; the stock sweep has none (1)")
    parser.add_argument(
        "--stop-when", choices=("first", "all"), default="all", help="how ours ends; the stock sweep: all (all)"
    )
    parser.add_argument(
        "--same-settings", action="store_true", help="run ours with the stock sweep's hyperparameters and network"
    )
    parser.add_argument("--population", type=int, default=4, help="trials of each sweep (4)")
    parser.add_argument(
        "--sides", nargs="+", choices=("stock", "ours"), default=["stock", "ours"], help="which to run (both)"
    )
    parser.add_argument("--memory", action="store_true", help="sample the memory of our processes too")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.population < 1:
        parser.error("--rounds and --population take a number of at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())

"""The sides of `main_job.py`: each runs the main job in a folder by a command, and says what that took."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from running import QUIET, ROOT, Memory, run_command

HERE = Path(__file__).resolve().parent
STOCK_SLOTS = 2
STOCK_BATCH = 2048
SB3_SLOTS = 2
SB3_BATCH = 256


@dataclass(frozen=True)
class Measured:
    """What one run took.

    Attributes:
        side: `stock`, `sb3` or `ours`.
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


def run_stock(folder: Path, options: argparse.Namespace, label: str, memory: Memory | None) -> Measured:
    """Runs the stock sweep in `folder`."""
    command = [sys.executable, str(HERE / "stock_sweep.py"), str(folder), str(options.population), options.stop_when]
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


def run_sb3(folder: Path, options: argparse.Namespace, label: str, memory: Memory | None) -> Measured:
    """Runs the study of Stable-Baselines3 and Optuna in `folder`, in the virtual environment of the peers."""
    command = [options.peers, str(HERE / "sb3_optuna.py"), str(folder), *["first"] * (options.stop_when == "first")]
    wall_s, told = run_command(command, folder, {}, label)
    return Measured(
        side="sb3",
        wall_s=wall_s,
        fit_s=told["fit_s"],
        training_slot_s=told["trained_slot_s"],
        slots=SB3_SLOTS,
        efficiency=told["trained_slot_s"] / (SB3_SLOTS * told["fit_s"]),
        iterations=told["steps"] // SB3_BATCH,
        env_steps=told["steps"],
        steps_per_s=told["steps"] / told["fit_s"],
        best_return=told["best"],
        checkpoint_in_mlflow=False,
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
    flags += ["--max-iterations", "40"]  # of 2048 steps: the budget of both other sides
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


RUN: Mapping[str, Callable[[Path, argparse.Namespace, str, Memory | None], Measured]] = {
    "stock": run_stock,
    "sb3": run_sb3,
    "ours": run_ours,
}

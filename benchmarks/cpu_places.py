"""What it brings that trials which share CPUs train one at a time on each: 4 trials on 2 CPUs, with and without places.

::

    python benchmarks/cpu_places.py              # 3 rounds of both, medians; 2 minutes

Each of 4 processes builds an algorithm with the values of the preset test-local and trains it for some iterations, once
as the system would have it and once with a place for each CPU (`plato_core/training/cpus.py`). Steps are those of the
environment, seconds those of the wall, from when all are built to when the last is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from running import machine_now, say

TRIALS, CPUS = 4, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(description="Trials that share CPUs, with and without places on them.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each runs; medians are printed (3)")
    parser.add_argument("--iterations", type=int, default=15, help="of each trial (15)")
    options = parser.parse_args(argv)
    now = machine_now()
    rates: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(1, options.rounds + 1):
        for side, each in rates.items():
            each.append(_rate(options.iterations, places=side == "with"))
            say(f"round {number}/{options.rounds} {side} places: {each[-1]:.0f} steps a second")
    medians = {side: statistics.median(each) for side, each in rates.items()}
    print(f"{'':16}{'steps/s':>10}")
    for side, median in medians.items():
        print(f"{side + ' places':16}{median:>10.0f}")
    ratio = medians["with"] / medians["without"]
    print(f"{'ratio':16}{ratio:>10.2f}")
    result = {
        "benchmark": "cpu_places",
        **now,
        "rounds": options.rounds,
        "steps_per_s": {side: [round(rate, 1) for rate in each] for side, each in rates.items()},
        "with_over_without": round(ratio, 3),
    }
    print(json.dumps(result), flush=True)
    return 0


def _rate(iterations: int, *, places: bool) -> float:
    """Returns the environment steps a second of all trials together."""
    context = multiprocessing.get_context("spawn")
    built, steps = context.Barrier(TRIALS), context.Queue()
    with tempfile.TemporaryDirectory(prefix="plato-bench-places-") as folder:
        arguments = (folder if places else None, iterations, built, steps)
        trials = [context.Process(target=_train, args=(index, *arguments)) for index in range(TRIALS)]
        for trial in trials:
            trial.start()
        told = [steps.get(timeout=300) for _ in trials]
        for trial in trials:
            trial.join()
    began, ended = min(told_began for told_began, _, _ in told), max(told_ended for _, told_ended, _ in told)
    return sum(count for _, _, count in told) / (ended - began)


def _train(index: int, folder: str | None, iterations: int, built: Any, steps: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    if sys.platform == "linux":  # elsewhere on a machine of as many CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    from ray.rllib.algorithms.ppo import PPOConfig

    from plato_core.config_sources import load_config
    from plato_core.training.build import RLLIB_NAMES, build_algorithm
    from plato_core.training.cpus import CpuPlaces

    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
    preset: dict[str, Any] = dict(load_config({"test_local": True}, None, {}).hyperparameters)
    for name, value in preset.items():
        if name == "model_config":
            config.rl_module(model_config=value)
        else:  # the learning rate changes nothing about the speed
            setattr(config, RLLIB_NAMES.get(name, name), 3e-3 if name == "lr" else value)
    algorithm = build_algorithm(config.debugging(seed=index, log_level="ERROR"), 1)
    places = None if folder is None else CpuPlaces(Path(folder), CPUS)
    algorithm.train()
    built.wait()
    began, count = time.time(), 0
    for _ in range(iterations):
        with contextlib.nullcontext() if places is None else places.place():
            count += int(algorithm.train()["env_runners"]["num_env_steps_sampled"])
    steps.put((began, time.time(), count))
    algorithm.stop()


if __name__ == "__main__":
    sys.exit(main())

"""Small sweeps through the runner, and what they leave on disk."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from trials import TINY

from plato_core.config import SweepConfig
from plato_core.sweep import channel, lineage, runner
from plato_core.sweep.packing import Packing
from plato_core.sweep.protocol import Go
from plato_core.sweep.stopping import STATE, StopState

SMALL: dict[str, Any] = {
    "lr": 1e-3,
    "lambda": 0.9,
    "clip_param": 0.2,
    "num_sgd_iter": 2,
    "sgd_minibatch_size": 64,
    "train_batch_size": 128,
    "num_envs_per_env_runner": 2,
    "model_config": TINY,
}


@dataclass
class Swept:
    """What a sweep left: each trial's results in order, and the lineage."""

    fitted: runner.Fitted
    results: dict[str, list[dict[str, Any]]]
    exploits: list[lineage.Exploit]
    folder: Path

    def at(self, trial: str, iteration: int) -> dict[str, Any]:
        return self.results[trial][iteration - 1]


def packed(population: int, resident: int | None = None) -> Packing:
    resident = resident or population
    return Packing(slots=2, resident=resident, cpus_per_trial=2 / resident, gpus_per_trial=0.0)


def sweep(
    config: SweepConfig,
    folder: Path,
    packing: Packing | None = None,
    each: list[dict[str, Any]] | None = None,
) -> Swept:
    """Runs a sweep in this process, with nobody at the other end of its pipes and nothing tracked.

    Args:
        config: The sweep.
        folder: Its folder.
        packing: By default the whole population at once.
        each: Hyperparameters by which the trials differ from the start on, in their order.
    """
    vars(STATE).update(vars(StopState()))
    channel._go = Go(tracking_uri="", experiment_id="", parent_run_id="")
    channel._go_came.set()
    packing = packing or packed(config.num_tune_samples)
    configs = runner.trial_configs(config, "sweep-1", packing)
    for trial, values in zip(configs, each or [], strict=False):
        trial["hyperparameters"] |= values
    fitted = runner.fit(config, configs=configs, packing=packing, sweep_dir=folder, tracking=tune.Callback())
    results = {}
    for path in sorted((folder / runner.TUNE_FOLDER).glob("*/result.json")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        results[lines[0]["trial_id"]] = lines
    return Swept(fitted, results, lineage.read(folder / lineage.LINEAGE_NAME), folder)


def returns(results: list[dict[str, Any]]) -> list[float]:
    """The returns that are known."""
    values = [result["episode_reward_mean"] for result in results]
    return [value for value in values if value is not None and math.isfinite(value)]

"""Small sweeps through the runner, and what they leave on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from trials import TINY

from plato_core.config import SweepConfig
from plato_core.manifest import Manifest, read_manifest
from plato_core.sweep import channel, lineage, population, revival, runner
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
    """What a sweep told its callbacks, and what it left.

    Attributes:
        fitted: What the runner returned.
        results: Each trial's results in order, the trials in the order of the population.
        starts: How often each trial was started.
        checkpoints: Each trial's checkpoints in order: own iteration, score, hyperparameters.
        exploits: The lineage.
        folder: The sweep's folder.
    """

    fitted: runner.Fitted
    results: dict[str, list[dict[str, Any]]]
    starts: dict[str, int]
    checkpoints: dict[str, list[Manifest]]
    exploits: list[lineage.Exploit]
    folder: Path

    def at(self, trial: str, iteration: int) -> dict[str, Any]:
        return self.results[trial][iteration - 1]


class Listening(tune.Callback):
    """Stands where the tracking callback does, and keeps what it is told."""

    def __init__(self) -> None:
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.starts: dict[str, int] = {}
        self.checkpoints: dict[str, list[Manifest]] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.starts[trial.trial_id] = self.starts.get(trial.trial_id, 0) + 1

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.results.setdefault(trial.trial_id, []).append(dict(result))

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        self.checkpoints.setdefault(trial.trial_id, []).append(read_manifest(Path(checkpoint.path)))


def packed(population: int, resident: int | None = None) -> Packing:
    resident = resident or population
    return Packing(slots=4, resident=resident, cpus_per_trial=4 / resident, gpus_per_trial=0.0)  # of `small_ray`


def sweep(
    config: SweepConfig,
    folder: Path,
    packing: Packing | None = None,
    each: list[dict[str, Any]] | None = None,
    listening: Listening | None = None,
) -> Swept:
    """Runs a sweep in this process, with nobody at the other end of its pipes and nothing tracked.

    Args:
        config: The sweep.
        folder: Its folder.
        packing: By default the whole population at once.
        each: Hyperparameters by which the trials differ from the start on, in their order.
        listening: What keeps what the sweep's callbacks are told, where it does more than that.
    """
    vars(STATE).update(vars(StopState()))
    channel._go = Go(tracking_uri="", experiment_id="", parent_run_id="")
    channel._go_came.set()
    packing = packing or packed(config.num_tune_samples)
    configs = population.trial_configs(config, "sweep-1", packing)
    for trial, values in zip(configs, each or [], strict=False):
        trial["hyperparameters"] |= values
    listening = listening or Listening()
    fitted = runner.fit(config, configs=configs, packing=packing, sweep_dir=folder, tracking=listening)
    return Swept(
        fitted,
        dict(sorted(listening.results.items())),
        listening.starts,
        listening.checkpoints,
        lineage.read(folder / lineage.LINEAGE_NAME),
        folder,
    )


def on_disk(swept: Swept, trial: str) -> list[dict[str, Any]]:
    """The trial's `result.json`."""
    path = next((swept.folder / revival.TUNE_FOLDER).glob(f"*{trial}")) / "result.json"
    return [json.loads(line) for line in path.read_text().splitlines()]


def iterations(results: list[dict[str, Any]]) -> list[int]:
    return [result["training_iteration"] for result in results]

"""The sweep itself: a Tuner over a population, in whatever process calls it."""

from __future__ import annotations

import functools
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.search import BasicVariantGenerator

from plato_core.config import SweepConfig
from plato_core.errors import SweepError
from plato_core.search_space import initial_population
from plato_core.sweep.channel import emit, wait_for_go
from plato_core.sweep.events import TrackingState
from plato_core.sweep.gate import Gate
from plato_core.sweep.lineage import LINEAGE_NAME
from plato_core.sweep.observer import Observer, error_of
from plato_core.sweep.packing import Packing
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.sweep.scheduler import build_scheduler
from plato_core.sweep.stopping import STATE, SweepStopper
from plato_core.tracking.callback import SweepTrackingCallback
from plato_core.tracking.spool import Target
from plato_core.tracking.summary import DrainSummary
from plato_core.training.spec import TrialSpec, mlflow_params
from plato_core.training.trainable import AlgorithmTrainable

# In the sweep's folder: Tune's own experiment.
TUNE_FOLDER = "tune"


@dataclass(frozen=True)
class Fitted:
    """What the fit took.

    Attributes:
        fit_s: Wall seconds from the moment at which trials might train to the end of `Tuner.fit`.
        training_slot_s: Sum over trials of training seconds x CPUs allotted.
        trials: Number of trials.
    """

    fit_s: float
    training_slot_s: float
    trials: int


def trial_configs(config: SweepConfig, sweep_id: str, packing: Packing) -> list[dict[str, Any]]:
    """Returns the Tune config of every trial of the initial population."""
    assert config.seed is not None
    spec = TrialSpec(
        sweep_id=sweep_id,
        env_name=config.env_name,
        env_config=config.env_config,
        algorithm=config.algorithm,
        seed=config.seed,
        num_env_runners=config.num_env_runners,
        num_cpus=packing.cpus_per_trial,
        num_gpus=packing.gpus_per_trial,
        metric=config.rank_metric_name,
        mode=config.mode,
        tuned=tuple(sorted(config.mutations)),
        checkpoint_interval=config.checkpoint_every,
        checkpoint_unit=config.perturbation_unit,
    )
    population = initial_population(config.hyperparameters, config.mutations, config.num_tune_samples, config.seed)
    return [spec.trial_config(index, values) for index, values in enumerate(population)]


def tracking_callback(config: SweepConfig, *, sweep_id: str, sweep_dir: Path) -> SweepTrackingCallback:
    """Returns the callback that sends the trials to MLflow, once the parent has said where."""
    return SweepTrackingCallback(
        target=functools.partial(_target, sweep_id, config.keep_checkpoints, config.mode),
        spool_dir=sweep_dir / TRACKING_FOLDER,
        tuned=sorted(config.mutations),
        params=mlflow_params,
        cancelled=_cancelled,
        report=tell_tracking,
    )


def tell_tracking(summary: DrainSummary) -> None:
    """Tells the parent how far the tracking is."""
    emit(
        TrackingState(
            pending=summary.pending_ops,
            sent=summary.sent_metrics,
            rejected=summary.rejected,
            last_error=summary.last_error,
        )
    )


def _target(sweep_id: str, keep_checkpoints: int, mode: Literal["max", "min"]) -> Target:
    go = wait_for_go()
    return Target(
        tracking_uri=go.tracking_uri,
        experiment_id=go.experiment_id,
        parent_run_id=go.parent_run_id,
        sweep_id=sweep_id,
        keep_checkpoints=keep_checkpoints,
        mode=mode,
    )


def _cancelled() -> bool:
    return STATE.cancelled


def fit(
    config: SweepConfig,
    *,
    configs: list[dict[str, Any]],
    packing: Packing,
    sweep_dir: Path,
    tracking: tune.Callback,
) -> Fitted:
    """Runs the sweep to its end.

    Args:
        config: What to run.
        configs: From `trial_configs`.
        packing: How the population is laid over the slots.
        sweep_dir: The sweep's folder.
        tracking: The callback that sends results to MLflow.

    Raises:
        SweepError: Every trial failed.
    """
    random.seed(config.seed)  # PBT draws its donors from it
    np.random.seed(config.seed)
    resident = packing.resident == len(configs)
    gate = Gate()
    observer = Observer(config.scheduler_metric_name)
    finish = _Finish(observer)
    tuner = tune.Tuner(
        tune.with_resources(AlgorithmTrainable, tune.PlacementGroupFactory(packing.bundles(config.num_env_runners))),
        # Tune wants a template for the points below; every key of every trial is in it.
        param_space=configs[0],
        tune_config=tune.TuneConfig(
            scheduler=build_scheduler(config, resident=resident, lineage_path=sweep_dir / LINEAGE_NAME),
            search_alg=BasicVariantGenerator(points_to_evaluate=configs),
            num_samples=len(configs),
            max_concurrent_trials=None if resident else packing.resident,
            reuse_actors=not resident,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(sweep_dir.absolute()),
            stop=SweepStopper(config),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=config.keep_checkpoints,
                checkpoint_score_attribute=config.rank_metric_name,
                checkpoint_score_order=config.mode,
                checkpoint_at_end=True,
            ),
            callbacks=[gate, _JsonLogger(), _CSVLogger(), observer, tracking, finish],
            verbose=0,
        ),
    )
    results = tuner.fit()
    ended = time.monotonic()
    if finish.errors and len(finish.errors) == len(configs):
        raise SweepError(f"every trial failed, the first with: {finish.errors[0]}")
    if gate.opened_at is None:
        raise SweepError("it ended before any trial had started")
    fit_s = ended - gate.opened_at
    seconds = sum(float((result.metrics or {}).get("time_total_s", 0.0)) for result in results)
    return Fitted(fit_s=fit_s, training_slot_s=seconds * packing.cpus_per_trial, trials=len(configs))


class _Continuing:
    """For a file logger whose trial is paused and goes on: the file here is newer than the one in storage.

    Ray copies the latter over the former at every start, and so loses the lines since its last upload.
    """

    def _restore_from_remote(self, file_name: str, trial: Trial) -> None:
        if not Path(trial.local_path or "", file_name).exists():
            super()._restore_from_remote(file_name, trial)  # type: ignore[misc]


class _JsonLogger(_Continuing, JsonLoggerCallback):
    pass


class _CSVLogger(_Continuing, CSVLoggerCallback):
    pass


class _Finish(tune.Callback):
    """Comes last: ends what Tune ended without a callback, and keeps the trials' errors."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.errors: list[str] = []

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._observer.finish(trials)
        self.errors += [error_of(trial) or "unknown" for trial in trials if trial.status == Trial.ERROR]


def _trial_name(trial: Trial) -> str:
    spec = trial.config["spec"]
    # Environment ids may hold a namespace (`ALE/Pong-v5`) or a module (`mine:Env-v0`); this names a folder too.
    env_name = spec["env_name"].replace("/", "_").replace(":", "_")
    return f"{spec['algorithm']}_{env_name}_{trial.trial_id}"

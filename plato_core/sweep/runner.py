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

from plato_core.config import SweepConfig
from plato_core.errors import SweepError
from plato_core.sweep import logs, revival
from plato_core.sweep.channel import emit, wait_for_go
from plato_core.sweep.events import TrackingState
from plato_core.sweep.gate import Gate
from plato_core.sweep.lineage import LINEAGE_NAME
from plato_core.sweep.nodewatch import NodeWatch
from plato_core.sweep.observer import Observer
from plato_core.sweep.packing import Packing
from plato_core.sweep.population import Population, begin_logs, name_of, trial_id_of
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.sweep.room import ROOM
from plato_core.sweep.scheduler import build_scheduler
from plato_core.sweep.spent import SpentTime
from plato_core.sweep.stopping import SweepStopper, interrupted
from plato_core.sweep.watch import RayWatch
from plato_core.tracking.callback import SweepTrackingCallback
from plato_core.tracking.spool import Target
from plato_core.tracking.summary import DrainSummary
from plato_core.tracking.trial_files import error_line
from plato_core.training.cpus import shares_cpus
from plato_core.training.spec import mlflow_params, own_checkpoint
from plato_core.training.trainable import AlgorithmTrainable


@dataclass(frozen=True)
class Fitted:
    """What the fit took.

    Attributes:
        fit_s: Wall seconds from the moment at which trials might train to the end of `Tuner.fit`.
        training_slot_s: Sum over trials of training seconds x CPUs allotted.
        slots: CPUs that the sweep might use.
    """

    fit_s: float
    training_slot_s: float
    slots: int


def tracking_callback(config: SweepConfig, *, sweep_id: str, sweep_dir: Path) -> SweepTrackingCallback:
    """Returns the callback that sends the trials to MLflow, once the parent has said where."""
    return SweepTrackingCallback(
        target=functools.partial(_target, sweep_id, config.keep_checkpoints, config.mode),
        spool_dir=sweep_dir / TRACKING_FOLDER,
        tuned=sorted(config.mutations),
        params=mlflow_params,
        restored=own_checkpoint,
        cancelled=interrupted,
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
            gives_up_s=summary.gives_up_s,
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
    assert config.seed is not None
    # A sweep that goes on draws other numbers than it has drawn before.
    seed = config.seed + len(revival.attempts(sweep_dir))
    random.seed(seed)  # PBT draws its donors from it
    np.random.seed(seed)
    attempt = revival.next_attempt(sweep_dir)
    before = {trial_id_of(trial): begin_logs(trial, sweep_dir, attempt) for trial in configs}
    resident = packing.resident >= len(configs)
    gate = Gate()
    stopper = SweepStopper(config)
    observer = Observer(config.scheduler_metric_name, stopper)
    finish = _Finish(observer)
    watches: list[tune.Callback] = [RayWatch(), SpentTime(sweep_dir)]
    ROOM.trials = None
    if config.ray_address is not None:
        watches.append(NodeWatch(packing, config.num_env_runners, sweep_dir, config.ray_wait_s))
    tuner = tune.Tuner(
        tune.with_resources(AlgorithmTrainable, tune.PlacementGroupFactory(packing.bundles(config.num_env_runners))),
        # Tune wants a template for the points below; every key of every trial is in it.
        param_space=configs[0],
        tune_config=tune.TuneConfig(
            scheduler=build_scheduler(config, seed=seed, resident=resident, lineage_path=sweep_dir / LINEAGE_NAME),
            search_alg=Population(points_to_evaluate=configs),
            num_samples=len(configs),
            max_concurrent_trials=None if resident else packing.resident,
            reuse_actors=not resident,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=str(sweep_dir.absolute()),
            stop=stopper,
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=config.keep_checkpoints,
                checkpoint_score_attribute=config.rank_metric_name,
                checkpoint_score_order=config.mode,
                checkpoint_at_end=True,
            ),
            # A line in a trial's log says that the tracking has its result: so that comes first.
            callbacks=[gate, *watches, tracking, logs.JsonLog(), logs.CsvLog(), observer, finish],
            verbose=0,
        ),
    )
    results = tuner.fit()
    ended = time.monotonic()
    if finish.errors and len(finish.errors) == config.num_tune_samples:
        raise SweepError(f"every trial failed, the first with: {finish.errors[0]}")
    if gate.opened_at is None and not finish.errors:
        raise SweepError("it ended before any trial had started")
    fit_s = ended - (gate.opened_at or ended)
    # A trial that goes on and had no result any more has nothing to take off from.
    last = {str(metrics.get("trial_id")): metrics for result in results if (metrics := result.metrics)}
    totals = {trial: float(last.get(trial, {}).get("time_total_s", 0.0)) for trial in before}
    seconds = sum(max(0.0, total - before[trial]) for trial, total in totals.items())
    for trial in configs:
        revival.forget_attempts_before(sweep_dir / attempt, trial_id_of(trial))
    # One that takes turns has a CPU when it trains. Where trials wait for something else they train beside others.
    cpus = 1.0 if shares_cpus(packing.cpus_per_trial, config.num_env_runners) else packing.cpus_per_trial
    return Fitted(fit_s=fit_s, training_slot_s=min(seconds * cpus, packing.slots * fit_s), slots=packing.slots)


class _Finish(tune.Callback):
    """Comes last: ends what Tune ended without a callback, and keeps the trials' errors."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.errors: list[str] = []

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._observer.finish(trials)
        self.errors += [error_line(trial) or "unknown" for trial in trials if trial.status == Trial.ERROR]

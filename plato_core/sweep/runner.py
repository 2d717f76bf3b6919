"""The sweep itself: a Tuner over a population, in whatever process calls it."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

from plato_core.config import SweepConfig
from plato_core.errors import SweepError
from plato_core.search_space import initial_population
from plato_core.sweep import folder, logs, revival
from plato_core.sweep.channel import emit, wait_for_go
from plato_core.sweep.events import TrackingState
from plato_core.sweep.gate import Gate
from plato_core.sweep.lineage import LINEAGE_NAME
from plato_core.sweep.observer import Observer, error_of
from plato_core.sweep.packing import Packing
from plato_core.sweep.protocol import TRACKING_FOLDER
from plato_core.sweep.scheduler import build_scheduler, time_attribute
from plato_core.sweep.stopping import STATE, SweepStopper
from plato_core.tracking.callback import SweepTrackingCallback
from plato_core.tracking.spool import Target
from plato_core.tracking.summary import DrainSummary
from plato_core.training.spec import Resume, TrialSpec, mlflow_params, own_checkpoint, resumed_config
from plato_core.training.trainable import AlgorithmTrainable


@dataclass(frozen=True)
class Fitted:
    """What the fit took.

    Attributes:
        fit_s: Wall seconds from the moment at which trials might train to the end of `Tuner.fit`.
        training_slot_s: Sum over trials of training seconds x CPUs allotted.
    """

    fit_s: float
    training_slot_s: float


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


def resumed_configs(config: SweepConfig, configs: list[dict[str, Any]], sweep_dir: Path) -> list[dict[str, Any]]:
    """Returns the Tune configs of the trials that go on, each from its last whole checkpoint.

    Args:
        config: The sweep's, whose budget may be larger now.
        configs: From `trial_configs`.
        sweep_dir: The sweep's folder.
    """
    folders_of = {trial["index"]: revival.folders_of(sweep_dir, _trial_id(trial)) for trial in configs}
    ends = {index: revival.end_of(folders) for index, folders in folders_of.items()}
    sweep_end = folder.read_end(sweep_dir)
    finished = sweep_end is not None and sweep_end.outcome == "finished"
    if config.stop_when == "first" and any(end is not None and end.why == "target" for end in ends.values()):
        return []  # it was about to end when it was killed
    going_on = []
    for trial in configs:
        folders, end = folders_of[trial["index"]], ends[trial["index"]]
        if end is not None and not _may_go_on(config, end, sweep_dir, finished=finished):
            continue
        point = revival.last_point(folders, logs.last_logged(folders))
        if point is None:
            going_on.append(trial)  # it had nothing yet: anew, as it began
            continue
        judged_at, score = logs.last_judgement(
            folders,
            point.iteration,
            time_attribute=time_attribute(config),
            interval=config.perturbation_interval,
            metric=config.scheduler_metric_name,
        )
        resume = Resume(str(point.checkpoint), point.own, judged_at=judged_at, score=score)
        going_on.append(resumed_config(trial, point.hyperparameters, resume))
    return going_on


def _may_go_on(config: SweepConfig, end: revival.TrialEnd, sweep_dir: Path, *, finished: bool) -> bool:
    """Whether a trial that ended may train on: one that failed, or one that has a larger budget now."""
    if end.why == "error":
        return not finished  # what made it fail may be mended; of a sweep that finished it is part of the outcome
    if end.why == "iterations":
        return config.max_iterations is None or end.iteration < config.max_iterations
    return end.why == "time" and (config.time_budget_s is None or logs.spent_s(sweep_dir) < config.time_budget_s)


def tracking_callback(config: SweepConfig, *, sweep_id: str, sweep_dir: Path) -> SweepTrackingCallback:
    """Returns the callback that sends the trials to MLflow, once the parent has said where."""
    return SweepTrackingCallback(
        target=functools.partial(_target, sweep_id, config.keep_checkpoints, config.mode),
        spool_dir=sweep_dir / TRACKING_FOLDER,
        tuned=sorted(config.mutations),
        params=mlflow_params,
        restored=own_checkpoint,
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
    attempt = revival.next_attempt(sweep_dir)
    before = {_trial_id(trial): _carry_over(trial, sweep_dir, attempt) for trial in configs}
    resident = packing.resident >= len(configs)
    gate = Gate()
    stopper = SweepStopper(config)
    observer = Observer(config.scheduler_metric_name, stopper)
    finish = _Finish(observer)
    tuner = tune.Tuner(
        tune.with_resources(AlgorithmTrainable, tune.PlacementGroupFactory(packing.bundles(config.num_env_runners))),
        # Tune wants a template for the points below; every key of every trial is in it.
        param_space=configs[0],
        tune_config=tune.TuneConfig(
            scheduler=build_scheduler(config, resident=resident, lineage_path=sweep_dir / LINEAGE_NAME),
            search_alg=_Population(points_to_evaluate=configs),
            num_samples=len(configs),
            max_concurrent_trials=None if resident else packing.resident,
            reuse_actors=not resident,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=str(sweep_dir.absolute()),
            stop=stopper,
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=config.keep_checkpoints,
                checkpoint_score_attribute=config.rank_metric_name,
                checkpoint_score_order=config.mode,
                checkpoint_at_end=True,
            ),
            callbacks=[gate, tracking, logs.JsonLog(), logs.CsvLog(), observer, finish],
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
    seconds = sum(float((result.metrics or {}).get("time_total_s", 0.0)) for result in results) - sum(before.values())
    for trial in configs:
        revival.forget_attempts_before(sweep_dir / attempt, _trial_id(trial))
    return Fitted(fit_s=fit_s, training_slot_s=seconds * packing.cpus_per_trial)


def _carry_over(trial: dict[str, Any], sweep_dir: Path, attempt: str) -> float:
    """Begins the attempt's logs of a trial that goes on; returns the seconds that it had trained by then."""
    if (resume := Resume.of(trial)) is None:
        return 0.0
    folders = revival.folders_of(sweep_dir, _trial_id(trial))
    logs.carry_over(folders, sweep_dir / attempt / _trial_name(trial))
    return float(resume.own["time_total_s"])


class _Population(BasicVariantGenerator):
    """Gives each trial its config as it is, and the id that it has in every attempt."""

    def next_trial(self) -> Trial | None:
        trial = super().next_trial()
        if trial is not None:
            trial.trial_id = _trial_id(trial.config)
        return trial


class _Finish(tune.Callback):
    """Comes last: ends what Tune ended without a callback, and keeps the trials' errors."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.errors: list[str] = []

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._observer.finish(trials)
        self.errors += [error_of(trial) or "unknown" for trial in trials if trial.status == Trial.ERROR]


def _trial_id(config: Mapping[str, Any]) -> str:
    return revival.trial_id(config["spec"]["sweep_id"], config["index"])


def _trial_name(config: Mapping[str, Any]) -> str:
    spec = config["spec"]
    # Environment ids may hold a namespace (`ALE/Pong-v5`) or a module (`mine:Env-v0`); this names a folder too.
    env_name = spec["env_name"].replace("/", "_").replace(":", "_")
    return f"{spec['algorithm']}_{env_name}_{_trial_id(config)}"


def _name_of(trial: Trial) -> str:
    return _trial_name(trial.config)

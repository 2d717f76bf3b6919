"""The trials of a sweep: the population as it begins, and what of it goes on after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.air.constants import TRAINING_ITERATION
from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

from plato_core.config import SweepConfig
from plato_core.search_space import initial_population
from plato_core.sweep import folder, lineage, logs, revival
from plato_core.sweep.packing import Packing
from plato_core.sweep.scheduler import time_attribute
from plato_core.sweep.spent import read_spent_s
from plato_core.sweep.stopping import SweepStopper
from plato_core.sweep.trial import SweepTrial
from plato_core.tracking.callback import EndedBefore
from plato_core.training.spec import Resume, TrialSpec, resumed_config


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
    going_on = []
    points: dict[str, tuple[int, bool]] = {}
    indices = unfinished(config, sweep_dir)
    for trial in (trial for trial in configs if trial["index"] in indices):
        folders = revival.folders_of(sweep_dir, trial_id_of(trial))
        point = revival.last_point(folders, logs.last_logged(folders))
        revival.forget_beyond(folders, point)
        points[trial_id_of(trial)] = (0, False) if point is None else (point.iteration, point.exploited)
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
    lineage.forget_beyond(sweep_dir / lineage.LINEAGE_NAME, points)
    return going_on


def points_of(configs: list[dict[str, Any]]) -> dict[int, int]:
    """Returns from which iteration each trial goes on, by its place in the population; from 0 those that begin."""
    resumes = {trial["index"]: Resume.of(trial) for trial in configs}
    return {index: 0 if resume is None else int(resume.own["iteration"]) for index, resume in resumes.items()}


def unfinished(config: SweepConfig, sweep_dir: Path) -> list[int]:
    """Returns which trials of a sweep have not come to their end, by their place in the population.

    Writes down the end of a trial that had come to it and was killed or cancelled before that was written.

    Args:
        config: The sweep's, whose budget may be larger now.
        sweep_dir: The sweep's folder.
    """
    stopper = SweepStopper(config)
    all_folders = {
        index: revival.folders_of(sweep_dir, revival.trial_id(sweep_dir.name, index))
        for index in range(config.num_tune_samples)
    }
    ends = {
        index: revival.end_of(folders) or _came_to_its_end(folders, stopper) for index, folders in all_folders.items()
    }
    if config.stop_when == "first" and any(end is not None and end.why == "target" for end in ends.values()):
        return []  # it was about to end when it was killed
    sweep_end = folder.read_end(sweep_dir)
    finished = sweep_end is not None and sweep_end.outcome == "finished"
    has_time = config.time_budget_s is None or read_spent_s(sweep_dir) < config.time_budget_s
    return [index for index, end in ends.items() if _may_go_on(config, end, finished=finished, has_time=has_time)]


def _came_to_its_end(folders: list[Path], stopper: SweepStopper) -> revival.TrialEnd | None:
    point = revival.last_point(folders, logs.last_logged(folders))
    if point is None or point.exploited:
        return None
    result = next((one for one in logs.results(folders) if one[TRAINING_ITERATION] == point.iteration), {})
    if (why := stopper.due(result)) is None:
        return None
    end = revival.TrialEnd(status="FINISHED", iteration=point.iteration, why=why)
    revival.note_end(folders[-1], end)
    return end


def _may_go_on(config: SweepConfig, end: revival.TrialEnd | None, *, finished: bool, has_time: bool) -> bool:
    """Whether a trial may train on: one that has not ended, that failed, or that has a larger budget now."""
    if end is None:  # of a sweep that finished: it ran out of time before this one's turn
        return not finished or has_time
    if end.why == "error":
        return not finished  # what made it fail may be mended; of a sweep that finished it is part of the outcome
    if end.why == "iterations":
        return config.max_iterations is None or end.iteration < config.max_iterations
    return end.why == "time" and has_time


def ended_before(config: SweepConfig, sweep_dir: Path, configs: list[dict[str, Any]]) -> dict[str, EndedBefore]:
    """Returns what is to be said of the trials that earlier attempts have trained to their end, by their ids.

    Args:
        config: The sweep's.
        sweep_dir: The sweep's folder.
        configs: Of the trials that go on.
    """
    going_on = {trial_id_of(trial) for trial in configs}
    found = {}
    for index in range(config.num_tune_samples):
        trial = revival.trial_id(sweep_dir.name, index)
        folders = revival.folders_of(sweep_dir, trial)
        if trial in going_on or not folders:
            continue
        end, note = revival.end_of(folders), folders[-1] / revival.TRIAL_END_NAME
        when = (note if end is not None else folders[-1]).stat().st_mtime
        point = revival.last_point(folders, logs.last_logged(folders))
        own = None if point is None or point.exploited else point.checkpoint
        found[trial] = EndedBefore("FINISHED" if end is None else end.status, when, folders[-1], own)
    return found


def begin_logs(trial: dict[str, Any], sweep_dir: Path, attempt: str) -> float:
    """Begins the attempt's logs of a trial that goes on; returns the seconds that it had trained by then."""
    if (resume := Resume.of(trial)) is None:
        return 0.0
    folders = revival.folders_of(sweep_dir, trial_id_of(trial))
    logs.carry_over(folders, sweep_dir / attempt / trial_name_of(trial))
    return float(resume.own["time_total_s"])


class Population(BasicVariantGenerator):
    """Gives each trial its config as it is, and the id that it has in every attempt."""

    def next_trial(self) -> Trial | None:
        """Returns the next trial, None after the last (Tune's hook)."""
        trial = super().next_trial()
        if trial is not None:
            trial.trial_id = trial_id_of(trial.config)
            SweepTrial.of(trial)
        return trial


def trial_id_of(config: Mapping[str, Any]) -> str:
    """Returns a trial's id by its config."""
    return revival.trial_id(config["spec"]["sweep_id"], config["index"])


def trial_name_of(config: Mapping[str, Any]) -> str:
    """Returns the name of a trial's folder by its config."""
    spec = config["spec"]
    # Environment ids may hold a namespace (`ALE/Pong-v5`) or a module (`mine:Env-v0`); this names a folder too.
    env_name = spec["env_name"].replace("/", "_").replace(":", "_")
    return f"{spec['algorithm']}_{env_name}_{trial_id_of(config)}"


def name_of(trial: Trial) -> str:
    """Returns a trial's name; Tune's hook."""
    return trial_name_of(trial.config)

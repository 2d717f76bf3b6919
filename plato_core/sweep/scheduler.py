"""Population Based Training for trials that stay in their processes, and the other schedulers.

Population Based Training of Neural Networks, Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.air.constants import TRAINING_ITERATION
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.result import TIME_TOTAL_S
from ray.tune.schedulers import (
    ASHAScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from plato_core.config import SweepConfig
from plato_core.manifest import checkpoint_name, read_manifest
from plato_core.search_space import Distribution, explore
from plato_core.sweep import lineage, logs
from plato_core.sweep.channel import emit
from plato_core.sweep.events import Exploited
from plato_core.sweep.revival import note_exploit
from plato_core.sweep.room import ROOM
from plato_core.sweep.turns import in_line
from plato_core.tracking.hold import hold_tree
from plato_core.training.metrics import counters_of
from plato_core.training.spec import EXPLOITED_PREFIX, Resume, exploited_config, own_checkpoint


class ResidentPBT(PopulationBasedTraining):
    """PBT whose exploits happen inside the trial's own process, between two of its iterations.

    Ray's own pauses the trial, ends its process and starts another (5-8 s of imports). Differences besides:

    - values come from typed distributions and stay within their bounds (`search_space.explore`);
    - each trial is judged every interval of its own time, and keeps its own counters through an exploit;
    - nothing is exploited from a trial whose score is infinite, or that has failed and not been judged since;
    - the donor's checkpoint is held in the exploiting trial's folder, so that neither retention nor a crash can
      take it away;
    - each exploit becomes a line of `lineage.jsonl` and an event.
    """

    def __init__(
        self,
        *,
        metric: str,
        mode: str,
        time_attr: str,
        interval: float,
        quantile_fraction: float,
        resample_probability: float,
        mutations: Mapping[str, Distribution],
        seed: int,
        resident: bool,
        lineage_path: Path,
    ) -> None:
        super().__init__(
            time_attr=time_attr,
            metric=metric,
            mode=mode,
            perturbation_interval=interval,
            quantile_fraction=quantile_fraction,
            resample_probability=resample_probability,
            # Exploring is ours; Ray's constructor wants one of the two.
            custom_explore_fn=lambda config: config,
            log_config=False,
            require_attrs=False,
        )
        self._score_name = metric
        self._mutations = dict(mutations)
        self._rng = random.Random(seed)
        self._resident = resident
        self._lineage_path = lineage_path

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Takes a trial in; one that goes on after a resume as it was last judged: it can be a donor at once.

        Tune also adds a trial again when it has failed and starts anew. That one is no donor until it is judged again.
        """
        starts_again = trial in self._trial_state
        super().on_trial_add(tune_controller, trial)
        if starts_again:
            state: Any = self._trial_state[trial]
            state.last_perturbation_time = state.last_train_time = self._judged_at(trial)
            return
        if (resume := Resume.of(trial.config)) is None:
            return
        state = self._trial_state[trial]
        state.last_perturbation_time = state.last_train_time = resume.judged_at
        if resume.score is not None:
            state.last_score = resume.score if self._mode == "max" else -resume.score
            state.last_result = {self._score_name: resume.score}
        if (checkpoint := own_checkpoint(trial.config)) is not None:
            state.last_checkpoint = Checkpoint(str(checkpoint))

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Judges the trial at its interval; a resident one makes room for others only where the nodes lack it.

        They do where one was lost: then trials take turns of an interval each.
        """
        decision = super().on_trial_result(tune_controller, trial, result)
        if self._resident and decision == TrialScheduler.PAUSE:
            trials = tune_controller.get_trials()
            running = sum(each.status == Trial.RUNNING for each in trials)
            unfinished = sum(not each.is_finished() for each in trials)
            # With fewer running than fit, whoever waits is about to start.
            return decision if ROOM.lacks(unfinished) and ROOM.lacks(running + 1) else TrialScheduler.CONTINUE
        return decision

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Returns a paused trial: it asks for room from now on, in line with those that have not begun.

        Ray's own has a paused trial ask only when the one before it runs, so that of several free places one is used.
        """
        if not self._resident:
            return in_line(tune_controller, lambda trial: self._trial_state[trial].last_train_time)
        return next((trial for trial in tune_controller.get_trials() if trial.status == Trial.PAUSED), None)

    def _judged_at(self, trial: Trial) -> float:
        """When a trial that starts again was last judged, by the results that it keeps."""
        judged_at, _ = logs.last_judgement(
            [Path(str(trial.path))],
            logs.begins_after(trial),
            time_attribute=self._time_attr,
            interval=self._perturbation_interval,
            metric=self._score_name,
        )
        return judged_at

    def _save_trial_state(self, state: Any, time: int, result: dict[str, Any], trial: Trial) -> float:
        """Takes an infinite score for an unknown one: PBT passes over NaN alone, and would exploit from infinity."""
        score = super()._save_trial_state(state, time, result, trial)
        state.last_score = score if math.isfinite(score) else math.nan
        return state.last_score

    def _exploit(self, tune_controller: TuneController, trial: Trial, trial_to_clone: Trial) -> None:
        donor = trial_to_clone
        # The trial's own last result is not yet in `trial.last_result`: Tune stores it after asking the scheduler.
        result: dict[str, Any] = self._trial_state[trial].last_result or {}
        donor_result: dict[str, Any] = self._trial_state[donor].last_result or {}
        own = counters_of(result)
        checkpoint = self._donor_checkpoint(donor)
        if checkpoint is None:
            return
        held = self._hold(trial, checkpoint, own.iteration)
        manifest = read_manifest(held)

        old = trial.config["hyperparameters"]
        donated = donor.config["hyperparameters"]
        new, operations = explore(donated, self._mutations, self._resample_probability, self._rng)
        config = exploited_config(trial.config, new, own.to_dict())
        trial.set_config(config)
        # Where Tune would start the trial anew: the donor's policy, at this trial's own count.
        checkpoints: Any = trial.run_metadata.checkpoint_manager
        checkpoints._latest_checkpoint_result = _TrainingResult(
            checkpoint=Checkpoint(str(held), checkpoint.filesystem),
            metrics={TRAINING_ITERATION: own.iteration, TIME_TOTAL_S: own.time_total_s},
        )
        # An actor's calls run in the order they are made, so this comes before the next `train`.
        actor: Any = trial.temporary_state.ray_actor
        actor.exploit.remote(config, str(held))
        note_exploit(held.parent, own.iteration, new, own.to_dict())
        self._release_older(held)
        self._num_perturbations += 1
        self._tell(
            lineage.Exploit(
                time=time.time(),
                trial=trial.trial_id,
                trial_name=str(trial),
                iteration=own.iteration,
                score=float(result[self._score_name]),
                donor=donor.trial_id,
                donor_name=str(donor),
                donor_iteration=manifest.iteration,
                donor_score=donor_result.get(self._score_name),
                checkpoint=checkpoint_name(manifest.iteration),
                old={name: old.get(name) for name in self._mutations},
                new={name: new.get(name) for name in self._mutations},
                operations=operations,
            )
        )

    def _donor_checkpoint(self, donor: Trial) -> Any:
        """The checkpoint of the donor's last judgement or, if retention has taken that, its newest."""
        judged: Any = self._trial_state[donor].last_checkpoint
        for checkpoint in (judged, donor.checkpoint):
            if checkpoint is not None and Path(checkpoint.path).is_dir():
                return checkpoint
        return None

    def _hold(self, trial: Trial, checkpoint: Any, iteration: int) -> Path:
        folder = Path(str(trial.path))
        held = folder / f"{EXPLOITED_PREFIX}{iteration:06d}"
        hold_tree(Path(checkpoint.path), held)
        return held

    def _release_older(self, held: Path) -> None:
        """Removes what earlier exploits of the trial held, once the newest is written down."""
        for older in held.parent.glob(f"{EXPLOITED_PREFIX}*"):
            if older.is_dir() and older != held:
                older.with_name(f"{older.name}.json").unlink(missing_ok=True)
                shutil.rmtree(older, ignore_errors=True)

    def _tell(self, exploit: lineage.Exploit) -> None:
        lineage.append(self._lineage_path, exploit)
        emit(
            Exploited(
                trial=exploit.trial,
                iteration=exploit.iteration,
                donor=exploit.donor,
                donor_iteration=exploit.donor_iteration,
                checkpoint=exploit.checkpoint,
                old=exploit.old,
                new=exploit.new,
                operations=exploit.operations,
            )
        )


class PatientMedian(MedianStoppingRule):
    """Ray's median rule, without what it does wrong here.

    A return that was once unknown (NaN) made a trial's best NaN and so stopped it, even the best of all; and while
    others wait for their first result it pauses a trial, which costs a resident one its process.
    """

    def __init__(self, *, metric: str, resident: bool, **settings: Any) -> None:
        super().__init__(metric=metric, **settings)
        self._score_name = metric
        self._resident = resident

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Judges a result whose metric is known."""
        if not math.isfinite(result.get(self._score_name, math.nan)):
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        if self._resident and decision == TrialScheduler.PAUSE:
            return TrialScheduler.CONTINUE
        return decision

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Counts a finished trial whose last metric is known."""
        if math.isfinite(result.get(self._score_name, math.nan)):
            super().on_trial_complete(tune_controller, trial, result)


def time_attribute(config: SweepConfig) -> str:
    """Returns the scheduler's time, as results name it."""
    return TRAINING_ITERATION if config.perturbation_unit == "iterations" else TIME_TOTAL_S


def build_scheduler(config: SweepConfig, *, seed: int, resident: bool, lineage_path: Path) -> TrialScheduler:
    """Returns the Tune scheduler that the config asks for."""
    metric = config.scheduler_metric_name
    time_attr = time_attribute(config)
    if config.scheduler == "pbt":
        return ResidentPBT(
            metric=metric,
            mode=config.mode,
            time_attr=time_attr,
            interval=config.perturbation_interval,
            quantile_fraction=config.quantile_fraction,
            resample_probability=config.resample_probability,
            mutations=config.mutations,
            seed=seed,
            resident=resident,
            lineage_path=lineage_path,
        )
    grace = max(1, round(config.perturbation_interval))
    if config.scheduler == "asha":
        # With no count to stop at, only the rungs matter: 100 is Ray's own default.
        max_t = config.max_iterations if config.max_iterations and time_attr == TRAINING_ITERATION else 100 * grace
        return ASHAScheduler(
            time_attr=time_attr,
            metric=metric,
            mode=config.mode,
            max_t=max(max_t, grace),
            grace_period=grace,
            stop_last_trials=False,  # how long a trial trains is the config's word alone
        )
    return PatientMedian(time_attr=time_attr, metric=metric, mode=config.mode, grace_period=grace, resident=resident)

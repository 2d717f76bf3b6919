"""Tells the parent process what happens to each trial, and keeps Tune from saving twice at an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from plato_core.errors import CheckpointError
from plato_core.manifest import read_manifest
from plato_core.sweep.channel import emit
from plato_core.sweep.events import Checkpointed, Result, Stopping, TrialEnded, TrialRestarted, TrialStarted
from plato_core.sweep.logs import begins_after
from plato_core.sweep.revival import TrialEnd, note_end
from plato_core.sweep.stopping import STATE, SweepStopper, interrupted
from plato_core.sweep.trial import SweepTrial
from plato_core.tracking.trial_files import error_line
from plato_core.training.metrics import HP_PREFIX


class Observer(tune.Callback):
    """Turns Tune's callbacks into events, and watches for the moment when nothing runs any more.

    Args:
        metric: The scheduler's metric.
        stopper: Knows what ends a trial.
    """

    def __init__(self, metric: str, stopper: SweepStopper) -> None:
        self._metric = metric
        self._stopper = stopper
        self._ended: set[str] = set()
        self._exploited_at: dict[str, int] = {}
        self._stopping_told = False

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tells once that the sweep is ending, and the stopper when no trial runs any more."""
        STATE.running = any(trial.status == Trial.RUNNING for trial in trials)
        if STATE.reason is not None and not self._stopping_told:
            self._stopping_told = True
            emit(Stopping(reason=STATE.reason))

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial runs, for the first time or again."""
        emit(
            TrialStarted(
                trial=trial.trial_id,
                index=trial.config["index"],
                hyperparameters=trial.config["hyperparameters"],
            )
        )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported; Tune lets callbacks change the result in place."""
        own = int(result["training_iteration"])
        exploited = trial.config.get("own", {}).get("iteration") == own
        if trial.is_saving or exploited:
            # PBT saves its best trials itself; and one that is taking over a donor's policy has nothing of its own.
            result[SHOULD_CHECKPOINT] = False
        emit(result_event(trial.trial_id, result, self._metric))

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        """A trial wrote a checkpoint."""
        try:
            manifest = read_manifest(checkpoint.path)
        except CheckpointError:
            return
        emit(Checkpointed(trial=trial.trial_id, iteration=manifest.iteration, score=manifest.score))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended by itself or by its stopper."""
        self._end(trial, "KILLED" if interrupted() else "FINISHED", None)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed and starts again; Tune restores its last checkpoint, or what it had taken over since."""
        error = error_line(trial) or "unknown"
        lost_node = isinstance(trial, SweepTrial) and trial.lost_node
        emit(TrialRestarted(trial=trial.trial_id, iteration=begins_after(trial), error=error, lost_node=lost_node))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed for good."""
        self._end(trial, "FAILED", error_line(trial))

    def finish(self, trials: list[Trial]) -> None:
        """Tells the end of the trials for which Tune made no callback."""
        for trial in trials:
            if trial.status == Trial.ERROR:
                self._end(trial, "FAILED", error_line(trial))
            else:
                self._end(trial, "KILLED" if interrupted() else "FINISHED", None)

    def _end(self, trial: Trial, status: str, error: str | None) -> None:
        if trial.trial_id in self._ended:
            return
        self._ended.add(trial.trial_id)
        own = int(trial.last_result.get("training_iteration", 0)) if trial.last_result else 0
        if status != "KILLED" and trial.path is not None and Path(trial.path).is_dir():
            # Such a trial is trained on after a resume only under a larger budget.
            why = "error" if status == "FAILED" else self._stopper.why(trial.last_result or {})
            ended = "FAILED" if status == "FAILED" else "FINISHED"
            note_end(Path(trial.path), TrialEnd(status=ended, iteration=own, why=why, error=error))
        emit(TrialEnded(trial=trial.trial_id, status=status, iteration=own, error=error))  # type: ignore[arg-type]


def result_event(trial: str, result: Mapping[str, Any], metric: str) -> Result:
    """Returns a result as the parent is told of it.

    Args:
        trial: The trial's id.
        result: What it reported, or its line of `result.json`.
        metric: The scheduler's.
    """
    return Result(
        trial=trial,
        iteration=int(result["training_iteration"]),
        episode_return=_finite(result["episode_reward_mean"]),
        metric_value=_finite(result.get(metric)),
        # From the result: an exploit has changed the trial's config already.
        hyperparameters={
            name.removeprefix(HP_PREFIX): value for name, value in result.items() if name.startswith(HP_PREFIX)
        },
        env_steps=int(result["num_env_steps_sampled"]),
        time_total_s=float(result["time_total_s"]),
        done=bool(result.get(DONE)),
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

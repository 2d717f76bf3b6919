"""The Tune trainable that wraps any RLlib algorithm and can take over another trial's policy in place."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.air.constants import TRAINING_ITERATION
from ray.tune.result import SHOULD_CHECKPOINT, TIME_TOTAL_S

from plato_core.manifest import TRIAL_STATE_NAME, write_manifest
from plato_core.training.cpus import shared_places
from plato_core.training.metrics import (
    HP_PREFIX,
    LEARNER_METRICS,
    Counters,
    RecentEpisodes,
    flat_metrics,
    read_iteration,
    restarted,
)
from plato_core.training.spec import Resume, TrialSpec, trial_seed

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

# In the trial's folder: the whole config that RLlib runs with.
ALGORITHM_CONFIG_NAME = "algorithm_config.json"

VERSIONS = {name: version(name) for name in ("ray", "torch", "numpy", "gymnasium")}


class AlgorithmTrainable(tune.Trainable):
    """One trial: an RLlib algorithm, its own counters, and its hyperparameters.

    Config: see `plato_core.training.spec`. RLlib's own Tune integration starts a new process (5-8 s of imports)
    at each exploit; this one rebuilds the algorithm in the process it has (0.1-0.7 s).

    A rebuild rather than setting values on the live algorithm, because it reaches everything that reads the
    config at build time (GAE's connector, schedules, batch sizes), and because a learner ignores restored weights
    whose sequence number is below its own.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Builds the algorithm (Tune's hook)."""
        self._exploit_error: Exception | None = None
        self._places = shared_places(TrialSpec.of(config))
        self._start(config)

    def _start(self, config: dict[str, Any]) -> None:
        # An algorithm that is built may wait for a cold disk; its iterations need a CPU all the same.
        with self._place(judged=False):
            self._build(config)

    def _build(self, config: dict[str, Any]) -> None:
        # Here and not at the top: Tune needs this class in the driver, which needs no RLlib and no torch (3 s).
        from plato_core.training.build import build_algorithm, build_config, epochs_counted

        self._started = time.monotonic()
        self._warmup_s: float | None = None
        self._spec = TrialSpec.of(config)
        self._hyperparameters: dict[str, Any] = dict(config["hyperparameters"])
        resume = Resume.of(config)
        self._counters = restarted(config.get("own") if resume is None else resume.own)
        self._env_steps_at_restore = self._counters.env_steps
        self._checkpointed = self._counters
        self._score: float | None = None
        seed = trial_seed(self._spec.seed, config["index"], self._counters.iteration)
        algorithm_config = build_config(self._spec, self._hyperparameters, seed)
        self._epochs_counted = epochs_counted(algorithm_config)
        self._window = int(algorithm_config.metrics_num_episodes_for_smoothing or 100)
        self._recent = RecentEpisodes(self._window)
        self.algorithm: Algorithm = build_algorithm(algorithm_config, int(self._spec.num_cpus))
        self._write_algorithm_config()
        if resume is not None:
            self.load_checkpoint(resume.checkpoint)

    def step(self) -> dict[str, Any]:
        """Trains one iteration.

        Returns:
            The flat metrics of `plato_core.training.metrics` and `hp/<name>` of each tuned value.

        Raises:
            TrialError: The trial cannot train on.
        """
        from plato_core.training.health import train

        if self._exploit_error is not None:
            raise self._exploit_error
        with self._place():
            began = time.monotonic()
            if self._warmup_s is None:
                self._warmup_s = began - self._started
            result = train(self.algorithm)
            train_s = time.monotonic() - began
        spent = read_iteration(result, train_s, self._epochs_counted)
        self._counters = self._counters.after(spent)
        metrics: dict[str, Any] = flat_metrics(
            result,
            spent,
            self._counters,
            timesteps_since_restore=self._counters.env_steps - self._env_steps_at_restore,
            warmup_s=self._warmup_s,
        )
        # Tune ends the sweep where the scheduler's metric is absent: DQN has no loss before it starts to learn.
        metrics = dict.fromkeys(LEARNER_METRICS, math.nan) | metrics
        self._recent.add(result)
        metrics |= self._recent.metrics()
        metrics |= {HP_PREFIX + name: self._hyperparameters[name] for name in self._spec.tuned}
        score = metrics.get(self._spec.metric, math.nan)
        self._score = float(score) if isinstance(score, int | float) and math.isfinite(score) else None
        metrics[SHOULD_CHECKPOINT] = self._checkpoint_is_due()
        return metrics

    def _checkpoint_is_due(self) -> bool:
        if self._spec.checkpoint_unit == "seconds":
            since = self._counters.time_total_s - self._checkpointed.time_total_s
            return since >= self._spec.checkpoint_interval
        return self._counters.iteration % max(1, round(self._spec.checkpoint_interval)) == 0

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes RLlib's checkpoint, the trial's counters, and last the manifest that marks it complete."""
        if self._exploit_error is not None:
            raise self._exploit_error  # half of a policy is none
        self.algorithm.save_to_path(checkpoint_dir)
        state = {
            "trial_id": self.trial_id,
            "own": self._counters.to_dict(),
            "episodes": self._recent.to_list(),
        }
        Path(checkpoint_dir, TRIAL_STATE_NAME).write_text(json.dumps(state))
        write_manifest(
            Path(checkpoint_dir),
            sweep_id=self._spec.sweep_id,
            trial_id=self.trial_id,
            trial_name=self.trial_name,
            iteration=self._counters.iteration,
            metric=self._spec.metric,
            mode=self._spec.mode,
            score=self._score,
            hyperparameters=self._hyperparameters,
            versions=VERSIONS,
        )
        self._checkpointed = self._counters

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Takes over a checkpoint's policy and optimizer: the trial's own, or at an exploit the donor's.

        The trial's counters come from the checkpoint only where it is the trial's own.
        """
        from plato_core.training.build import reapply_learning_rates

        directory = Path(checkpoint)
        self.algorithm.restore_from_path(directory)
        reapply_learning_rates(self.algorithm)
        state = json.loads((directory / TRIAL_STATE_NAME).read_text())
        if state["trial_id"] == self.trial_id:
            self._counters = restarted(state["own"])
        self._recent = RecentEpisodes.of(self._window, state["episodes"])
        self._env_steps_at_restore = self._counters.env_steps
        self._checkpointed = self._counters
        # Tune has just set both from the checkpoint's metrics, which at an exploit are the donor's.
        self._iteration = self._counters.iteration
        self._time_total = self._counters.time_total_s

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Rebuilds the algorithm in this process for another config (Tune's hook for reused actors)."""
        self.algorithm.stop()
        self._exploit_error = None
        self._start(new_config)
        return True

    def exploit(self, config: dict[str, Any], checkpoint_dir: str) -> None:
        """Takes over a donor's policy with new hyperparameters, in place, between two training iterations.

        Called by the scheduler without waiting; a failure is raised by the next `step`, where Tune sees it.

        Args:
            config: The trial's new config (`spec.exploited_config`).
            checkpoint_dir: The donor's checkpoint.
        """
        try:
            self.config = config
            self.reset_config(config)
            self.restore(checkpoint_dir)
            # A checkpoint saved before the next result must not claim the old policy's score; Tune ranks NaN last.
            own = self._counters
            self._last_result = {
                TRAINING_ITERATION: own.iteration,
                TIME_TOTAL_S: own.time_total_s,
                self._spec.metric: math.nan,
            }
        except Exception as error:
            self._exploit_error = error

    def cleanup(self) -> None:
        """Stops the algorithm and its env runners (Tune's hook)."""
        self.algorithm.stop()
        if self._places is not None:
            self._places.close()

    def _place(self, judged: bool = True) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._places is None else self._places.place(judged)

    @property
    def counters(self) -> Counters:
        """The trial's own counters."""
        return self._counters

    def _write_algorithm_config(self) -> None:
        storage = self._storage
        if storage is None:
            return
        # Tune's own params.json holds the trial's config only; this is what RLlib made of it.
        text = json.dumps(self.algorithm.config.to_dict(), default=str, indent=1, sort_keys=True)  # type: ignore
        path = Path(storage.trial_fs_path) / ALGORITHM_CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(text)
        partial.replace(path)

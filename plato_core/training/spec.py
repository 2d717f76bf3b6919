"""What every trial of a sweep has in common, and how a trial's Tune config is laid out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from plato_core.training.schema import trial_params

# In an exploiting trial's folder: the donor's checkpoint, until the trial has one of its own.
EXPLOITED_PREFIX = "exploited_"


@dataclass(frozen=True)
class TrialSpec:
    """The part of a trial's config that never changes.

    Attributes:
        sweep_id: The sweep's name on disk and in tags.
        env_name: A gymnasium id.
        env_config: Keyword arguments of the environment.
        algorithm: An RLlib algorithm's name.
        seed: The sweep's seed; each trial derives its own.
        num_env_runners: Remote env-runner processes beside the trial's own.
        num_cpus: CPUs allotted to the whole trial (fractions when the population shares the machine).
        num_gpus: GPUs allotted to it.
        metric: The rank metric, by which checkpoints are scored.
        mode: `max` or `min`: which scores are good.
        tuned: Canonical names of the mutated hyperparameters.
        checkpoint_interval: Own iterations, or own training seconds, between checkpoints.
        checkpoint_unit: `iterations` or `seconds`.
    """

    sweep_id: str
    env_name: str
    env_config: dict[str, Any]
    algorithm: str
    seed: int
    num_env_runners: int
    num_cpus: float
    num_gpus: float
    metric: str
    mode: Literal["max", "min"]
    tuned: tuple[str, ...]
    checkpoint_interval: float
    checkpoint_unit: str

    def trial_config(self, index: int, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the Tune config of trial `index` at its start."""
        return {"spec": asdict(self), "index": index, "hyperparameters": dict(hyperparameters), "resume": None}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TrialSpec:
        """Reads the spec from a trial's Tune config."""
        spec = dict(config["spec"])
        return cls(**{**spec, "tuned": tuple(spec["tuned"])})


def exploited_config(
    config: Mapping[str, Any], hyperparameters: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a trial's config after an exploit: new values, and the trial's own counters to go on from."""
    # What it was resumed from is behind it now.
    return {**config, "hyperparameters": dict(hyperparameters), "own": dict(own), "resume": None}


@dataclass(frozen=True)
class Resume:
    """From where a trial goes on in a new attempt.

    Attributes:
        checkpoint: The folder to restore; the trial's own, or a donor's that it had taken over.
        own: The trial's counters there.
        judged_at: When its scheduler last judged it, in the scheduler's time; 0 if it has not.
        score: The scheduler's metric then; None if it was unknown.
    """

    checkpoint: str
    own: dict[str, Any]
    judged_at: float = 0.0
    score: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Resume | None:
        """Reads it from a trial's Tune config; None for a trial that begins anew, or has exploited since."""
        text = config.get("resume")
        return None if text is None else cls(**json.loads(text))


def resumed_config(config: Mapping[str, Any], hyperparameters: Mapping[str, Any], resume: Resume) -> dict[str, Any]:
    """Returns a trial's config with which it goes on, with its values from there on."""
    # As one text: Tune takes a mapping in a config for a part of the search space.
    return {**config, "hyperparameters": dict(hyperparameters), "resume": json.dumps(asdict(resume))}


def own_checkpoint(config: Mapping[str, Any]) -> Path | None:
    """Returns the checkpoint that a trial goes on from, if it is one of its own."""
    resume = Resume.of(config)
    if resume is None or Path(resume.checkpoint).name.startswith(EXPLOITED_PREFIX):
        return None
    return Path(resume.checkpoint)


def mlflow_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the MLflow params of a trial from its Tune config."""
    spec = TrialSpec.of(config)
    return trial_params(
        spec.algorithm,
        spec.env_name,
        config["hyperparameters"],
        num_cpus=spec.num_cpus,
        num_gpus=spec.num_gpus,
        num_workers=spec.num_env_runners,
    )


def trial_seed(seed: int, index: int, iteration: int) -> int:
    """Returns the seed of one trial from one iteration on (the multipliers are primes; below 2**31)."""
    return (seed * 1_000_003 + index * 7_919 + iteration * 104_729) % 2**31

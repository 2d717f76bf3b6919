"""What a trial takes in memory, measured where it decides how many may be resident.

Where memory is plentiful nobody waits for a measurement: the whole population is resident. Where it might not be, a
process of Ray's trains the first trial for an iteration, a start-up's 5-10 s, before the population is laid out.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.exceptions import RayError

from plato_core.config import SweepConfig
from plato_core.sweep import cluster
from plato_core.sweep.channel import emit
from plato_core.sweep.events import Phase
from plato_core.sweep.packing import PROCESS_BYTES, Packing
from plato_core.sweep.population import trial_configs
from plato_core.training.spec import TrialSpec, trial_seed

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

# Of a process: with so much for each, there is no need to look. Four times what the networks of the presets take.
PLENTY_BYTES = 4 * PROCESS_BYTES
# A later iteration may take more than the first: longer episodes, a checkpoint being written.
_MARGIN = 1.25
_LIMIT_S = 60.0
_SAMPLE_S = 0.1


def plan(config: SweepConfig, sweep_id: str) -> Packing:
    """Lays the population over what Ray has, by the memory that one of its trials takes.

    Args:
        config: The sweep's.
        sweep_id: Its id.

    Raises:
        SweepError: The cluster has no CPU.
    """
    packing = cluster.plan(config, PLENTY_BYTES)
    if packing.resident == config.num_tune_samples:
        return packing
    emit(Phase(text="measuring what a trial takes in memory"))
    taken = measured(trial_configs(config, sweep_id, packing)[0], packing)
    if taken is None:
        return cluster.plan(config, PROCESS_BYTES)
    packing = cluster.plan(config, taken * _MARGIN)
    at_once = "" if packing.resident == config.num_tune_samples else f": room for {packing.resident} at once"
    emit(Phase(text=f"a trial's process takes {taken / 2**20:.0f} MB{at_once}"))
    return packing


def measured(trial: dict[str, Any], packing: Packing) -> float | None:
    """Returns the most memory that a trial's process takes, in bytes; None if it fails, as the trials will say why.

    Args:
        trial: A trial's config.
        packing: With how much of the machine it is measured.
    """
    share: dict[str, Any] = {"num_cpus": packing.bundles(0)[0]["CPU"], "num_gpus": packing.gpus_per_trial}
    # One call a process: what it has taken is given back.
    taken = ray.remote(max_calls=1, max_retries=0, **share)(_train).remote(trial, _LIMIT_S)
    try:
        return ray.get(taken, timeout=2 * _LIMIT_S)
    except RayError:  # of the trial, no memory, no end
        ray.cancel(taken, force=True)
        return None


def _train(trial: dict[str, Any], limit_s: float) -> float:
    """Trains an iteration at most; returns the most memory that this process took, in bytes."""
    from plato_core.training.build import build_algorithm, build_config

    # Its env runners are in this process: it takes what the larger of the two would.
    spec = replace(TrialSpec.of(trial), num_env_runners=0)
    algorithm = build_algorithm(
        build_config(spec, dict(trial["hyperparameters"]), trial_seed(spec.seed, trial["index"], 0)),
        int(spec.num_cpus),
    )

    def train() -> None:
        with contextlib.suppress(Exception):  # the trial itself will say it
            algorithm.train()

    training = threading.Thread(target=train, daemon=True)
    training.start()
    most, ends = _memory(), time.monotonic() + limit_s
    while training.is_alive() and time.monotonic() < ends:
        training.join(_SAMPLE_S)
        most = max(most, _memory())
    return most + _replay_bytes(algorithm)


def _memory() -> float:
    full = psutil.Process().memory_full_info()
    return float(getattr(full, "pss", None) or full.uss)  # its part of what it shares, where the system says that


def _replay_bytes(algorithm: Algorithm) -> float:
    """Returns what a replay buffer comes to hold: an observation a step, and little else."""
    buffer: dict[str, Any] = algorithm.config.get("replay_buffer_config") or {}  # type: ignore[union-attr]
    space = algorithm.config.observation_space  # type: ignore[union-attr]
    if not (capacity := buffer.get("capacity")):
        return 0.0
    shape, dtype = getattr(space, "shape", None) or (), getattr(space, "dtype", None)
    return float(capacity) * (math.prod(shape) * (dtype.itemsize if dtype is not None else 4) + 64)

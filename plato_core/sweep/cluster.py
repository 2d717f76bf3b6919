"""The Ray that a sweep runs on: one of this machine, started for it, or a cluster that is there."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import psutil
import ray

from plato_core.config import SweepConfig
from plato_core.config_machine import available_cpus
from plato_core.errors import SweepError
from plato_core.sweep.packing import Packing, pack

# Policies and metrics travel through it, not data sets; Ray's default is 30 % of the machine's memory.
OBJECT_STORE_BYTES = 256 * 2**20


def connect(config: SweepConfig, temp_dir: Path) -> None:
    """Starts a Ray of this machine, or connects to the cluster that the config names.

    Args:
        config: Names the cluster, or the CPUs and GPUs of the local Ray.
        temp_dir: Where a local Ray keeps its session; a short path, since sockets in it may have 107 characters.

    Raises:
        SweepError: The cluster does not answer.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.ray_address is not None:
        try:
            ray.init(address=config.ray_address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SweepError(
                f"no Ray cluster answers at {config.ray_address} ({reason}); start one with `ray start --head`, "
                "or leave out --ray-address for a Ray of this machine"
            ) from error
        return
    ray.init(
        address="local",
        num_cpus=config.num_cpus or available_cpus(),
        num_gpus=None if config.num_gpus is None else math.ceil(config.num_gpus),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=str(temp_dir),
        **quiet,
    )


def plan(config: SweepConfig) -> Packing:
    """Lays the population over what Ray has."""
    resources = ray.cluster_resources()
    cpus = int(resources.get("CPU", 1))
    gpus = resources.get("GPU", 0.0)
    local = config.ray_address is None
    return pack(
        config.num_tune_samples,
        slots=min(cpus, config.num_cpus or cpus),
        gpus=min(gpus, gpus if config.num_gpus is None else config.num_gpus),
        memory_bytes=available_memory() if local else resources.get("memory", 0.0),
        num_env_runners=config.num_env_runners,
    )


def available_memory() -> float:
    """Bytes of memory that this process may still use, by the machine and by its control group."""
    available = float(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(available, float(limit.read_text()) - float(used.read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return available

"""The Ray that a sweep runs on: one of this machine, started for it, or a cluster that is there."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import psutil
import ray

from plato_core.config import SweepConfig
from plato_core.errors import SweepError
from plato_core.sweep.packing import Packing, pack

# Policies and metrics travel through it, not data sets; Ray's default is 30 % of the machine's memory.
OBJECT_STORE_BYTES = 256 * 2**20

# Read by Ray when it is imported or started, so set before either.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TQDM_PATCH_PRINT": "0",  # Ray would replace builtins.print
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # an environment may read files relative to where the sweep was started
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # ours are named one by one; TensorBoard's costs time at each result
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the parent process decides what Ctrl-C means
    "OMP_NUM_THREADS": "1",
}

# For a Ray of this machine only: its servers listen on 127.0.0.1 and nowhere else. (Ray's own switch for systems
# whose firewall asks about every port; `_node_ip_address="127.0.0.1"` is turned into the machine's address.)
LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def prepare_environment(*, local: bool) -> None:
    """Sets what Ray reads at import and start, except what the user has set.

    Call it before anything imports Ray.

    Args:
        local: Whether the sweep runs on a Ray of this machine.
    """
    for name, value in (ENVIRONMENT | (LOCAL_ENVIRONMENT if local else {})).items():
        os.environ.setdefault(name, value)


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
        num_gpus=config.num_gpus,  # type: ignore[arg-type]  # a whole number by the config's own check
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


def available_cpus() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def available_memory() -> float:
    """Bytes of memory that this process may still use, by the machine and by its control group."""
    available = float(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(available, float(limit.read_text()) - float(used.read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return available

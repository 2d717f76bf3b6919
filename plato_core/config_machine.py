"""Whether a sweep can run from here: processors, folders, environment, tracking store. Nothing is created."""

import os
from pathlib import Path

from plato_core.config import SweepConfig
from plato_core.config_sources import flag
from plato_core.config_store import check_store
from plato_core.errors import ConfigError
from plato_core.training.environments import check_environment


def check_machine(config: SweepConfig) -> None:
    """Check what the config asks of this machine and of the tracking store, in some 3 s at the most.

    For a job of Azure ML its cluster is looked for too, by its SDK, which takes seconds to load.

    Raises:
        ConfigError: The first thing that cannot be; one line with the value, what is allowed and the way out.
    """
    if config.compute == "local":
        _check_cpus(config)
    _check_folder("local_path", config.local_folder)
    _check_folder("storage_path", config.storage_folder)
    check_environment(config.env_name, config.env_config, config.algorithm)
    check_store(config.store_uri)
    if config.compute == "aml":
        from plato_core.aml.sweepsettings import check_job

        check_job(config)


def available_cpus() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or a batch system may grant a part
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_cpus(config: SweepConfig) -> None:
    local = config.ray_address is None
    machine = available_cpus()
    if local and config.num_cpus is not None and config.num_cpus > machine:
        raise ConfigError(
            f"num_cpus: {config.num_cpus} are more CPUs than this machine has; give at most {machine}, "
            "or a cluster with --ray-address"
        )
    slots = config.num_cpus or (machine if local else None)
    needed = config.num_env_runners + 1
    if slots is not None and needed > slots:
        raise ConfigError(
            f"num_env_runners: {config.num_env_runners} need {needed} CPUs with the trial's own process, "
            f"and there are {slots}; give at most {slots - 1}"
        )


def _check_folder(name: str, folder: Path) -> None:
    way_out = f"give another {flag(name)}"
    for place in (folder, *folder.parents):
        if not os.path.lexists(place):
            continue
        if not place.is_dir():
            raise ConfigError(f"{name}: {place} is a file, where a folder should be; {way_out}")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"{name}: nothing can be written in {place}; {way_out}")
        return

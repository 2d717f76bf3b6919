"""Removing the files of old sweeps, before a new one needs the room."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from plato_core.errors import PlatoError
from plato_core.prune import prune


@task(name="prune old sweeps", task_run_name="prune old sweeps in {folder.name}", cache_policy=NO_CACHE)
def prune_old_sweeps(folder: Path, older_than_days: float | None, keep: int | None) -> None:
    """Removes the files of old sweeps; says so in the log. A failure is a warning there: the sweep goes on.

    Args:
        folder: The folder of sweeps.
        older_than_days: See `plato_core.prune.prune`.
        keep: See there.
    """
    logger = get_run_logger()
    if not folder.exists():  # the first sweep on this machine
        logger.info("there are no old sweeps: %s is not there yet", folder)
        return
    try:
        pruned = prune(folder, older_than_days=older_than_days, keep=keep)
    except PlatoError as error:
        logger.warning("old sweeps were not pruned: %s", error)
    except Exception:  # a bug here is no reason to lose a night
        logger.warning("old sweeps were not pruned", exc_info=True)
    else:
        (logger.warning if pruned.failed else logger.info)(pruned.describe())

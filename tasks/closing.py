"""Closing the MLflow runs that dead sweeps left RUNNING, beside a new one that starts."""

from __future__ import annotations

import threading
from pathlib import Path

from prefect import get_run_logger

from plato_core.closing import close_left_running


def close_left_behind(storage: Path) -> threading.Thread:
    """Ends the runs of dead sweeps, in a thread of its own: the new one neither waits for it nor fails by it.

    Not a task: it makes no request where there is nothing to close, which is nearly always.

    Args:
        storage: The folder of sweeps.

    Returns:
        The thread; it ends with the process at the latest.
    """
    logger = get_run_logger()

    def close() -> None:
        try:
            for closing in close_left_running(storage):
                if closing.error is None:
                    logger.info("sweep %s had died: %d MLflow runs are KILLED now", closing.sweep_id, len(closing.runs))
                else:
                    logger.warning("runs of sweep %s are not closed: %s", closing.sweep_id, closing.error)
        except Exception:  # a bug here is no reason to lose a night
            logger.warning("the runs of dead sweeps were not closed", exc_info=True)

    thread = threading.Thread(target=close, name="closing", daemon=True)
    thread.start()
    return thread

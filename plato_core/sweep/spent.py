"""How much of its time budget a sweep has spent, written down for the case that it is killed."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from plato_core.sweep.folder import write_whole
from plato_core.sweep.stopping import STATE

SPENT_NAME = "spent_s"
_EVERY_S = 5.0


class SpentTime(tune.Callback):
    """Writes down the seconds that the sweep has trained, every five seconds and at its end."""

    def __init__(self, sweep_dir: Path) -> None:
        self._path = sweep_dir / SPENT_NAME
        self._written = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Writes now and then."""
        if time.monotonic() - self._written >= _EVERY_S:
            self._write()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Writes the last word."""
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk: the budget is larger then by what is not written down
            write_whole(self._path, f"{STATE.spent_now_s():.3f}")


def read_spent_s(sweep_dir: Path) -> float:
    """Return the seconds that a sweep has trained so far; 0 if nothing readable says so."""
    try:
        return float((sweep_dir / SPENT_NAME).read_text())
    except (OSError, ValueError):
        return 0.0

"""Notices that Ray itself has died: Tune would wait for ever for trials that nobody can start any more."""

from __future__ import annotations

import time
from typing import Any

import psutil
from ray import tune
from ray.tune.experiment import Trial

from plato_core.errors import SweepError

# The daemons that a local Ray consists of, by their processes' names; of a cluster they run elsewhere.
_DAEMONS = ("raylet", "gcs_server")
_EVERY_S = 1.0


class RayWatch(tune.Callback):
    """Ends the sweep when a daemon of its local Ray is gone. Made once Ray runs."""

    def __init__(self) -> None:
        self._daemons = {p.pid: p.name() for p in psutil.Process().children() if p.name() in _DAEMONS}
        self._looked = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Looks once a second.

        Raises:
            SweepError: A daemon is gone.
        """
        if time.monotonic() - self._looked < _EVERY_S:
            return
        self._looked = time.monotonic()
        for pid, name in self._daemons.items():
            if not _lives(pid):
                raise SweepError(f"Ray's {name} on this machine died: killed (out of memory, perhaps) or crashed")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

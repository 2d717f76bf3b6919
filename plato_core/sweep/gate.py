"""Where the sweep's process waits: trials are built, and train once the parent's MLflow run is open."""

from __future__ import annotations

import time
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from plato_core.sweep.channel import wait_for_go
from plato_core.sweep.stopping import STATE


class Gate(tune.Callback):
    """Holds the first trial's start, and with it every training step, until the parent says go.

    Ray goes on starting the other trials' processes meanwhile.

    Attributes:
        opened_at: Monotonic time at which training could begin; None before.
    """

    def __init__(self) -> None:
        self.opened_at: float | None = None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's algorithm is built."""
        if self.opened_at is None:
            wait_for_go()
            self.opened_at = STATE.began = time.monotonic()

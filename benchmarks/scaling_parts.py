"""What `scaling.py` runs through Tune; a module of its own, since Ray's processes import it by its name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from plato_core.tracking.callback import SweepTrackingCallback
from plato_core.tracking.parent import open_parent
from plato_core.tracking.spool import Target
from plato_core.training.metrics import CONTRACT_METRICS, LEARNER_METRICS


class Trivial(tune.Trainable):
    """Reports a trial's metrics at once, and is taken over by the next trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begins anew."""
        self.own, self.results = 0, int(config["results"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins anew in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Returns made-up values."""
        self.own += 1
        values: dict[str, Any] = {name: self.own + 0.25 for name in (*CONTRACT_METRICS, *LEARNER_METRICS, "hp/lr")}
        return values | {"training_iteration": self.own, "done": self.own >= self.results}


class Stamps(tune.Callback):
    """Notes when each result comes by."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Tune's hook."""
        self.stamps.append(time.monotonic())


def tracking_callback(folder: Path) -> SweepTrackingCallback:
    """Returns our tracking of a sweep into a store of SQLite in a folder."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    parent = open_parent(uri, "benchmark", "sweep", {}, {})
    target = Target(
        tracking_uri=uri,
        experiment_id=parent.experiment_id,
        parent_run_id=parent.run_id,
        sweep_id="benchmark",
        keep_checkpoints=1,
        mode="max",
    )
    return SweepTrackingCallback(target=target, spool_dir=folder / "tracking", tuned=("lr",), params=_params)


def _params(config: dict[str, Any]) -> Mapping[str, Any]:
    return {"env": "none", **config}

"""Two of the sweeps of `efficiency.py`, each a program of its own; the last line of the output is what it came to.

::

    python benchmarks/efficiency_sides.py turns FOLDER SETTINGS
    python benchmarks/efficiency_sides.py stock FOLDER POPULATION TRAINING_SLOT_S LIMIT_S
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

SLOTS = 2


def turns(folder: Path, settings: Path) -> dict[str, Any]:
    """Runs our sweep, without Prefect around it, where no more than 2 trials have room in memory."""
    from plato_core.sweep.environment import prepare_environment

    prepare_environment(local=True)
    import ray

    from plato_core.config_sources import load_config
    from plato_core.sweep import channel, cluster, forkserver, packing, population, runner
    from plato_core.sweep.protocol import Go
    from plato_core.tracking.client import make_client

    config = load_config({"test_local": True}, settings, {})
    sweep_dir = folder / "sweep-1"
    sweep_dir.mkdir()
    client = make_client(config.store_uri)
    experiment = client.create_experiment("efficiency")
    run_id = client.create_run(experiment).info.run_id
    # As the parent process would say it.
    channel._go = Go(tracking_uri=config.store_uri, experiment_id=experiment, parent_run_id=run_id)
    channel._go_came.set()
    forks = forkserver.ForkServer(folder) if forkserver.available(folder) else None
    cluster.connect(config, folder / "ray", sweep_dir, forks)
    cluster.available_memory = lambda: SLOTS * packing.PROCESS_BYTES / packing.MEMORY_FRACTION
    packed = cluster.plan(config, packing.PROCESS_BYTES)
    configs = population.trial_configs(config, sweep_dir.name, packed)
    tracking = runner.tracking_callback(config, sweep_id=sweep_dir.name, sweep_dir=sweep_dir)
    fitted = runner.fit(config, configs=configs, packing=packed, sweep_dir=sweep_dir, tracking=tracking)
    tracking.drain()
    ray.shutdown()
    return {"resident": packed.resident, "fit_s": fitted.fit_s, "training_slot_s": fitted.training_slot_s}


def stock(folder: Path, population: int, training_slot_s: float, limit_s: float) -> dict[str, Any]:
    """Runs the sweep of `stock_sweep.py` until its trials have trained so long; each has a CPU while it trains."""
    os.chdir(folder)
    import mlflow
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from stock_sweep import METRIC, stock_algorithm, stock_scheduler

    class Trained(tune.Callback):
        """Adds up what every iteration took: a trial's own total jumps to its donor's at an exploit."""

        seconds = 0.0

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            self.seconds += result["time_this_iter_s"]

    class Enough(tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return trained.seconds >= training_slot_s or time.monotonic() - began >= limit_s

    trained = Trained()
    tracking_uri = "sqlite:///mlflow.db"
    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment("efficiency")
    callback = MLflowLoggerCallback(
        tracking_uri=tracking_uri, experiment_name="efficiency", save_artifact=True, log_params_on_trial_end=True
    )
    began = time.monotonic()
    tune.Tuner(
        "PPO",
        param_space=stock_algorithm(),
        tune_config=tune.TuneConfig(metric=METRIC, mode="max", scheduler=stock_scheduler(), num_samples=population),
        run_config=tune.RunConfig(
            stop=Enough(),
            storage_path=str(folder / "ray"),
            name="stock",
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=5, checkpoint_at_end=True),
            callbacks=[trained, callback],
        ),
    ).fit()
    fit_s = time.monotonic() - began
    return {"resident": min(population, SLOTS), "fit_s": fit_s, "training_slot_s": trained.seconds}


if __name__ == "__main__":
    _side, _folder, *_rest = sys.argv[1:]
    if _side == "turns":
        _told = turns(Path(_folder), Path(_rest[0]))
    else:
        _told = stock(Path(_folder), int(_rest[0]), float(_rest[1]), float(_rest[2]))
    print(json.dumps({name: value for name, value in _told.items() if math.isfinite(value)}), flush=True)

"""Many small results through Ray Tune, tracked or not: what the benchmarks of the tracking share.

A trial here does nothing but report. Ray runs in the benchmark's own process, once for all rounds, and each round runs
every side in turn. The clock of a side runs from its first result, when all processes are there, to its last, so that
their start and what is sent to the store after the end are not in it.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from running import QUIET

os.environ.update(QUIET)
from plato_core.sweep.environment import prepare_environment

prepare_environment(local=True)
os.environ["TUNE_WARN_THRESHOLD_S"] = "3600"  # the stock callback is slow; Tune would say so at each result

from ray import tune  # noqa: E402
from ray.tune.experiment import Trial  # noqa: E402
from ray.tune.logger import JsonLoggerCallback  # noqa: E402

from plato_core.tracking.callback import SweepTrackingCallback  # noqa: E402
from plato_core.tracking.spool import Target  # noqa: E402
from plato_core.training.metrics import CONTRACT_METRICS, HP_PREFIX, LEARNER_METRICS  # noqa: E402

Side = Literal["none", "ours", "stock"]
TUNED = tuple(f"value_{number}" for number in range(6))
# 29 of the contract, 5 of the learner, 6 tuned values: 40, all of which our callback sends.
METRICS = (*CONTRACT_METRICS, *LEARNER_METRICS, *(HP_PREFIX + name for name in TUNED))
# Those are set by Tune itself, in its own way.
_OF_TUNE = frozenset(
    ("done", "iterations_since_restore", "pid", "time_since_restore", "time_this_iter_s", "time_total_s", "timestamp")
)
SLOTS = 2
EXPERIMENT = "benchmark"


@dataclass(frozen=True)
class Load:
    """What goes through Tune.

    Attributes:
        trials: Trials in all.
        results: Results of each.
        actors: Trials at the same time; the others take over their processes.
        limit_s: A side that takes longer is stopped; its rate is that of the results until then.
        metrics: Of each result, beside those that Tune adds.
    """

    trials: int
    results: int
    actors: int
    limit_s: float
    metrics: int = len(METRICS)


@dataclass(frozen=True)
class Rate:
    """What one side came to.

    Attributes:
        side: Which.
        results: Results that went through Tune.
        seconds: From the first of them to the last.
        loop_cpu_s: CPU time that Tune's loop took in these.
        drain_s: Seconds after the last result until the store had all.
        sent: Points that the store took.
        complete: Whether the store has all, as the side itself says.
    """

    side: Side
    results: int
    seconds: float
    loop_cpu_s: float = 0.0
    drain_s: float = 0.0
    sent: int = 0
    complete: bool = True

    @property
    def per_s(self) -> float:
        """Results a second."""
        return (self.results - 1) / self.seconds if self.results > 1 else math.nan

    @property
    def loop_us(self) -> float:
        """Microseconds of CPU time that the loop takes for a result, which other programs hardly change."""
        return 1e6 * self.loop_cpu_s / max(1, self.results - 1)


class Trivial(tune.Trainable):
    """A trial that only reports, in a process that the next one takes over.

    Nobody reports before all processes are there: their start takes the CPU for 10 s, now more and now less.
    """

    _all_there = False

    def setup(self, config: dict[str, Any]) -> None:
        """Takes down how much to report."""
        self._gate, self._actors = Path(config["gate"]), int(config["actors"])
        self._total = self._left = int(config["results"])
        own = [name for name in METRICS if name not in _OF_TUNE and name != "training_iteration"]
        self._values = {name: 0.5 + number / 7 for number, name in enumerate(own[: config["metrics"]])}

    def step(self) -> dict[str, Any]:
        """Returns a result."""
        if not self._all_there:
            (self._gate / str(os.getpid())).touch()
            while len(os.listdir(self._gate)) < self._actors:
                time.sleep(0.02)
            self._all_there = True
        self._left -= 1
        values = {name: value + self._left / 3 for name, value in self._values.items()}
        # The stock callback takes this one for the step.
        return values | {"timesteps_total": self._total - self._left, "done": self._left <= 0}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial."""
        self.setup(new_config)
        return True


class Meter(tune.Callback):
    """Counts results. It comes last, so a result counts when every other callback is done with it."""

    def __init__(self) -> None:
        self.results = 0
        self.first = self.last = math.nan
        self.first_cpu = self.last_cpu = 0.0

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any) -> None:
        """Counts one."""
        self.last, self.last_cpu = time.monotonic(), time.thread_time()
        if self.results == 0:
            self.first, self.first_cpu = self.last, self.last_cpu
        self.results += 1


class Limit(tune.Stopper):
    """Ends what takes too long, from its first result on."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._began: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Ends no trial by itself."""
        self._began = self._began or time.monotonic()
        return False

    def stop_all(self) -> bool:
        """Whether the time is over."""
        return self._began is not None and time.monotonic() - self._began > self._limit_s


def start_ray() -> None:
    """Starts a Ray of this process."""
    import ray
    from ray import cloudpickle

    ray.init(
        address="local",
        num_cpus=SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=128 * 2**20,
    )
    # The trials' processes get the class itself: they need nothing else that this module imports.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def measure(side: Side, load: Load, uri: str) -> Rate:
    """Runs the load through Tune once.

    Args:
        side: Without tracking, with ours, or with Ray's own MLflow callback.
        load: How much.
        uri: The tracking store.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"plato-bench-{side}-"))
    (gate := folder / "gate").mkdir()
    meter = Meter()
    callback = None if side == "none" else _ours(folder, uri) if side == "ours" else _stock(uri)
    tuner = tune.Tuner(
        tune.with_resources(Trivial, {"cpu": math.floor(SLOTS / load.actors * 10_000) / 10_000}),
        param_space={
            **{"results": load.results, "metrics": load.metrics, "gate": str(gate), "actors": load.actors},
            **{name: 0.5 for name in TUNED},
        },
        tune_config=tune.TuneConfig(num_samples=load.trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            stop=Limit(load.limit_s),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # The JSON log is on all sides: Tune's own results are read from it.
            callbacks=[*([] if callback is None else [callback]), JsonLoggerCallback(), meter],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
        rate = Rate(side, meter.results, meter.last - meter.first, meter.last_cpu - meter.first_cpu)
        if isinstance(callback, SweepTrackingCallback):
            drained = callback.drain(60.0, limit_s=lambda: load.limit_s * 6)
            rate = replace(rate, sent=drained.sent_metrics, complete=drained.complete)
        return replace(rate, drain_s=time.monotonic() - meter.last)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _params(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config)


def _ours(folder: Path, uri: str) -> SweepTrackingCallback:
    client, experiment = _experiment(uri)
    parent = client.create_run(experiment)
    return SweepTrackingCallback(
        target=Target(
            tracking_uri=uri,
            experiment_id=experiment,
            parent_run_id=parent.info.run_id,
            sweep_id=folder.name,
            keep_checkpoints=1,
            mode="max",
        ),
        spool_dir=folder / "tracking",
        tuned=TUNED,
        params=_params,
    )


def _stock(uri: str) -> tune.Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    _experiment(uri)
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=EXPERIMENT)


def _experiment(uri: str) -> tuple[Any, str]:
    from plato_core.tracking.client import make_client

    client = make_client(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    return client, found.experiment_id if found is not None else client.create_experiment(EXPERIMENT)

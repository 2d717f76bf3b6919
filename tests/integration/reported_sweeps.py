"""What the tests of reporting share: a sweep's events without the sweep, told to the real sinks inside a real flow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from plato_core.config import SweepConfig
from plato_core.report.progress import SweepProgress
from plato_core.report.sinks import Report, facts_of, reporting
from plato_core.sweep.events import Event, Exploited, Result, SweepEnded, TrialStarted
from plato_core.tracking.parent import ParentRun, open_parent

ITERATIONS = 30
TRIALS = 4
FINAL = 300.0  # the best return at the end
Middle = Callable[[Report], object]


def config_in(folder: Path, **settings: object) -> SweepConfig:
    """A population on a SQLite store in a folder."""
    return SweepConfig.from_flow_parameters(
        {
            "tracking_uri": f"sqlite:///{folder}/mlflow.db",
            "num_tune_samples": TRIALS,
            "max_iterations": ITERATIONS,
            "stop_reward": 475.0,
            "mutations": {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
            **settings,
        }
    )


def opened_for(config: SweepConfig) -> ParentRun:
    return open_parent(config.store_uri, config.experiment_name, "sweep", tags={}, params={})


def events(first: int = 1, last: int = ITERATIONS) -> Iterator[Event]:
    """So many iterations of each trial; the returns rise by ten an iteration, and trial 3 exploits trial 0 once."""
    for index in range(TRIALS):
        yield TrialStarted(trial=f"t{index}", index=index, hyperparameters={"lr": 0.001})
    for iteration in range(first, last + 1):
        for index in range(TRIALS):
            value = 10.0 * iteration - index
            yield Result(
                trial=f"t{index}",
                iteration=iteration,
                episode_return=value,
                metric_value=value,
                hyperparameters={"lr": 0.002 if index == 3 and iteration > 5 else 0.001},
            )
        if iteration == 5:
            yield Exploited(trial="t3", donor="t0", iteration=5, old={"lr": 0.001}, new={"lr": 0.002})


def the_end() -> SweepEnded:
    return SweepEnded(outcome="finished", fit_s=20, training_slot_s=35, slots=2, trials=TRIALS)


def tell(
    config: SweepConfig, opened: ParentRun, progress: SweepProgress, middle: Middle, logger: logging.Logger
) -> None:
    """Tells the sinks of half a sweep, lets `middle` do what it wants, and tells them of the rest."""
    with reporting(config, opened, progress, logger) as report:
        for event in events(last=ITERATIONS // 2):
            report.update(event)
        middle(report)
        for event in [*events(first=ITERATIONS // 2 + 1), the_end()]:
            report.update(event)


def in_flow(step: Callable[[], None]) -> UUID:
    """Runs something in a task of a flow; returns the flow run's id."""

    @task(name="step", cache_policy=NO_CACHE)
    def stepping() -> None:
        step()

    @flow(name="flow")
    def flowing() -> str | None:
        stepping()
        return flow_run.id

    return UUID(flowing())


def progress_of(config: SweepConfig) -> SweepProgress:
    return SweepProgress(facts_of(config))

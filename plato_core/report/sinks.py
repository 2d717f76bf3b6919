"""Who is told of a sweep's progress: the terminal of a person who waits, the flow run's log, Prefect's UI, MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TextIO

from plato_core.config import SweepConfig
from plato_core.report.facts import SweepFacts
from plato_core.report.progress import SweepProgress
from plato_core.report.publisher import Logger, Publisher, finish
from plato_core.report.terminal import TerminalReporter
from plato_core.report.text import plain
from plato_core.sweep.events import Event
from plato_core.tracking.parent import ParentRun

# A sweep that has ended waits so long for Prefect's and MLflow's servers to take its last state.
LAST_UPDATE_S = 3.0


def facts_of(config: SweepConfig) -> SweepFacts:
    """Returns what progress needs to know of a config."""
    return SweepFacts(
        population=config.num_tune_samples,
        metric=config.scheduler_metric_name,
        mode=config.mode,
        stop_reward=config.stop_reward,
        stop_when=config.stop_when,
        max_iterations=config.max_iterations,
        time_budget_s=config.time_budget_s,
        tuned=tuple(sorted(config.mutations)),
    )


@dataclass
class Terminal:
    """A terminal that follows the sweep of this process, and what it has seen of it when it is over."""

    stream: TextIO
    progress: SweepProgress | None = field(default=None, init=False)


_terminal: Terminal | None = None


@contextmanager
def terminal(stream: TextIO) -> Iterator[Terminal]:
    """Has the sweep that runs inside followed on a stream; without it only the log is told."""
    global _terminal
    _terminal = Terminal(stream)
    try:
        yield _terminal
    finally:
        _terminal = None


def say(line: str, logger: Logger) -> None:
    """Tells the log, and a terminal that follows, of something after the sweep itself is over.

    Args:
        line: What to say.
        logger: Of the flow run.
    """
    logger.info(line)
    if _terminal is not None:
        with suppress(OSError, ValueError):  # it went away
            print(plain(line), file=_terminal.stream, flush=True)


@contextmanager
def reporting(config: SweepConfig, opened: ParentRun, progress: SweepProgress, logger: Logger) -> Iterator[Report]:
    """Opens the sinks of one sweep; Prefect's UI is one inside of a flow run.

    Args:
        config: The sweep's.
        opened: Its parent run in MLflow.
        progress: Its state, which the sinks show.
        logger: For the lines worth logging.
    """
    with ExitStack() as stack:
        publishers = _publishers(config, opened, progress, logger)
        stack.callback(finish, publishers, LAST_UPDATE_S)
        report = Report(progress, logger, publishers)
        if _terminal is not None:
            _terminal.progress = progress
            report.reporter = stack.enter_context(TerminalReporter(progress, _terminal.stream))
        yield report


@dataclass
class Report:
    """One sweep's progress, told to every sink from the same state."""

    progress: SweepProgress
    logger: Logger
    publishers: Sequence[Publisher] = ()
    reporter: TerminalReporter | None = None

    def update(self, event: Event | None) -> None:
        """Tells the sinks of an event; None lets time pass. Waits for none of them."""
        if event is None:
            self.progress.tick(time.monotonic())
            return
        self.progress.apply(event, time.monotonic())
        if (line := self.progress.notable(event)) is not None:
            self.logger.info(line)
        if self.reporter is not None:
            self.reporter.update(event)
        for publisher in self.publishers:
            publisher.notice()


def _publishers(config: SweepConfig, opened: ParentRun, progress: SweepProgress, logger: Logger) -> list[Publisher]:
    from plato_core.report import mlflow_run, prefect_artifacts

    look = progress.snapshot
    publishers = [
        Publisher(mlflow_run.NAME, partial(mlflow_run.following, config, opened, look), logger, mlflow_run.EVERY_S)
    ]
    if (run := prefect_artifacts.PrefectRun.current(config)) is not None:
        session = partial(prefect_artifacts.following, run, config, opened, look)
        publishers.append(Publisher(prefect_artifacts.NAME, session, logger, prefect_artifacts.EVERY_S))
    return publishers

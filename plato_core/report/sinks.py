"""Who is told of a sweep's progress: the terminal of a person who waits, and the flow run's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from plato_core.config import SweepConfig
from plato_core.report.facts import SweepFacts
from plato_core.report.progress import SweepProgress
from plato_core.report.terminal import TerminalReporter
from plato_core.sweep.events import Event


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


@contextmanager
def reporting(config: SweepConfig, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> Iterator[Report]:
    """Opens the sinks of one sweep."""
    progress = SweepProgress(facts_of(config))
    report = Report(progress, logger)
    if _terminal is None:
        yield report
        return
    _terminal.progress = progress
    with TerminalReporter(progress, _terminal.stream) as reporter:
        report.reporter = reporter
        yield report


@dataclass
class Report:
    """One sweep's progress, told to every sink from the same state."""

    progress: SweepProgress
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger]
    reporter: TerminalReporter | None = None

    def update(self, event: Event | None) -> None:
        """Tells the sinks of an event; None lets time pass."""
        if event is None:
            self.progress.tick(time.monotonic())
            return
        self.progress.apply(event, time.monotonic())
        if (line := self.progress.notable(event)) is not None:
            self.logger.info(line)
        if self.reporter is not None:
            self.reporter.update(event)

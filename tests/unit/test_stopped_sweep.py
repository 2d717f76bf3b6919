"""A sweep whose process hangs when it is told to stop."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from plato_core.config import SweepConfig
from plato_core.report.progress import SweepProgress
from plato_core.report.sinks import facts_of
from plato_core.sweep import process as processes
from plato_core.sweep.events import Event
from plato_core.sweep.process import SweepProcess
from plato_core.tracking.parent import ParentRun
from tasks import sweep as task


class Interrupted:
    """A report during which Ctrl-C is pressed."""

    def update(self, event: Event | None) -> None:
        raise KeyboardInterrupt


def child_of(process: SweepProcess) -> subprocess.Popen[bytes]:
    assert process._child is not None
    return process._child


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SweepProcess]:
    monkeypatch.setattr(processes, "STOP_S", 0.1)
    settings = {"storage_path": str(tmp_path), "num_tune_samples": 1, "max_iterations": 1}
    with SweepProcess(SweepConfig.from_flow_parameters(settings)) as process:
        os.kill(child_of(process).pid, signal.SIGSTOP)
        yield process


def test_it_is_gone_before_the_stores_are_told_of_the_end(
    hanging: SweepProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int | None] = []

    @contextmanager
    def reporting(*_: object) -> Iterator[Interrupted]:
        try:
            yield Interrupted()
        finally:
            codes.append(child_of(hanging).returncode)

    monkeypatch.setattr(task, "reporting", reporting)
    config = hanging.config
    with disable_run_logger(), pytest.raises(KeyboardInterrupt):
        task.run_sweep.fn(config, hanging, ParentRun("run", "1", "file:///"), SweepProgress(facts_of(config)))
    assert codes == [-signal.SIGKILL]


def test_it_is_killed_as_soon_as_its_time_is_up(hanging: SweepProcess) -> None:
    hanging.stop()
    assert child_of(hanging).wait(20) == -signal.SIGKILL

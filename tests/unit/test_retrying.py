"""A flow run that is tried again finds the sweep that it had begun."""

import threading
from pathlib import Path

import pytest

from plato_core.config import SweepConfig
from plato_core.errors import ConfigError
from plato_core.executions import adopt
from plato_core.resuming import note_flow_run, sweep_of, wait_for_end
from plato_core.sweep import folder
from plato_core.sweep.process import SweepProcess

FIRST, SECOND = "20260801-020000-aaaaaa", "20260802-020000-bbbbbb"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    config = SweepConfig.from_flow_parameters({"num_tune_samples": 1, "max_iterations": 1})
    for name in (FIRST, SECOND):
        (tmp_path / name).mkdir()
        (tmp_path / name / folder.CONFIG_NAME).write_text(config.to_yaml())
    return tmp_path


def test_the_newest_sweep_of_a_run_is_found_and_no_other_runs(storage: Path) -> None:
    assert sweep_of(storage, "run-1") is None
    note_flow_run(storage / FIRST, "run-1")
    assert sweep_of(storage, "run-1") == storage / FIRST
    note_flow_run(storage / SECOND, "run-1")  # its first one's folder was away when it was tried again
    assert sweep_of(storage, "run-1") == storage / SECOND
    assert sweep_of(storage, "run-2") is None
    assert sweep_of(storage / "nowhere", "run-1") is None


def test_a_sweep_that_several_runs_worked_on_is_found_by_each(storage: Path) -> None:
    for run in ("run-1", "run-2", "run-1"):
        note_flow_run(storage / FIRST, run)
    assert sweep_of(storage, "run-1") == sweep_of(storage, "run-2") == storage / FIRST


def test_a_sweep_that_still_runs_is_waited_for_and_then_named(storage: Path) -> None:
    held = folder.hold(storage / FIRST)
    with pytest.raises(ConfigError, match=f"sweep {FIRST} is still running on this machine"):
        wait_for_end(storage / FIRST, patience_s=0.1)
    threading.Timer(0.1, held.release).start()
    wait_for_end(storage / FIRST, patience_s=30.0)
    assert not folder.is_running(storage / FIRST)


def test_a_sweep_that_goes_on_is_held_but_starts_no_process_by_itself(storage: Path) -> None:
    settings = {"storage_path": str(storage), "num_tune_samples": 1, "max_iterations": 1, "resume": FIRST}
    with adopt(SweepConfig.from_flow_parameters(settings)) as process:
        assert isinstance(process, SweepProcess)
        assert process.sweep_dir == storage / FIRST
        assert process._child is None
        assert folder.is_running(storage / FIRST)
        assert process.stop() == []
    assert not folder.is_running(storage / FIRST)
    assert (storage / FIRST / folder.CONFIG_NAME).is_file()

"""Which sweep `--resume` means, and what may differ."""

from pathlib import Path

import pytest

from plato_core.config_sources import load_config
from plato_core.errors import ConfigError
from plato_core.resuming import find_sweep, resumed_config, write_parent
from plato_core.sweep import folder
from plato_core.tracking.parent import ParentRun

OLD, MIDDLE, NEW = "20260801-020000-aaaaaa", "20260802-020000-bbbbbb", "20260803-020000-cccccc"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Three sweeps, of which the newest has finished."""
    config = load_config({"preset": "test-local", "seed": 5, "num_tune_samples": 3}, None, {})
    for name in (OLD, MIDDLE, NEW):
        (tmp_path / name).mkdir()
        (tmp_path / name / folder.CONFIG_NAME).write_text(config.to_yaml())
        write_parent(tmp_path / name, ParentRun(f"run-of-{name}", "1", "file:///a"))
    folder.record_end(tmp_path / OLD, "stopped")
    folder.record_end(tmp_path / NEW, "finished")
    folder.record_done(tmp_path / NEW)
    return tmp_path


def test_a_sweep_is_found_by_its_id_its_parent_run_and_as_the_last(storage: Path) -> None:
    assert find_sweep(storage, OLD).name == OLD
    assert find_sweep(storage, f"run-of-{MIDDLE}").name == MIDDLE
    assert find_sweep(storage, "last").name == MIDDLE  # NEW has finished
    assert find_sweep(storage, NEW).name == NEW


@pytest.mark.parametrize("named", ["20260101-020000-dddddd", "nonsense"])
def test_a_sweep_that_is_not_there_is_refused(storage: Path, named: str) -> None:
    with pytest.raises(ConfigError, match=f"resume: there is no sweep '{named}' in .*; give a sweep's id"):
        find_sweep(storage, named)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sweep in .* is unfinished"):
        find_sweep(tmp_path / "none", "last")


def test_a_sweep_that_runs_is_not_taken_up_beside_itself(storage: Path) -> None:
    held = folder.hold(storage / MIDDLE)
    with pytest.raises(ConfigError, match=f"sweep {MIDDLE} is running"):
        find_sweep(storage, MIDDLE)
    assert find_sweep(storage, "last").name == OLD
    held.release()
    assert find_sweep(storage, "last").name == MIDDLE


def test_a_sweep_goes_on_with_its_own_settings(storage: Path) -> None:
    config = resumed_config(storage / OLD, {})
    assert (config.resume, config.seed, config.num_tune_samples) == (OLD, 5, 3)
    assert resumed_config(storage / OLD, {"num_tune_samples": 3}) == config  # said again is not changed


def test_a_larger_budget_may_be_given_and_a_smaller_one_not(storage: Path) -> None:
    assert resumed_config(storage / OLD, {"max_iterations": 80}).max_iterations == 80
    with pytest.raises(ConfigError, match="max_iterations: 10 is less than the 40"):
        resumed_config(storage / OLD, {"max_iterations": 10})


def test_a_changed_setting_is_refused(storage: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_tune_samples: 8 is not what sweep .* was started with"):
        resumed_config(storage / OLD, {"num_tune_samples": 8})


def test_the_command_line_resumes_whatever_preset_and_environment_say(storage: Path) -> None:
    flags = {"resume": "last", "storage_path": str(storage), "test_local": True}
    config = load_config(flags, None, {"PLATO_NUM_TUNE_SAMPLES": "16"})
    assert (config.resume, config.num_tune_samples, config.preset) == (MIDDLE, 3, "test-local")


def test_a_sweep_that_trained_and_was_not_fetched_is_unfinished(storage: Path) -> None:
    folder.record_end(storage / MIDDLE, "finished")
    assert find_sweep(storage, "last").name == MIDDLE
    folder.record_done(storage / MIDDLE)
    assert find_sweep(storage, "last").name == OLD

"""Which sweep `--resume` means, and what may differ."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from plato_core import executions
from plato_core.config import SweepConfig
from plato_core.config_form import form_values, from_form
from plato_core.config_sources import load_config
from plato_core.errors import ConfigError
from plato_core.resuming import find_sweep, resumed_config, write_parent
from plato_core.sweep import folder, process
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


@pytest.mark.parametrize("named", ["last", MIDDLE])
def test_a_sweep_that_still_ends_is_waited_for_and_none_taken_instead(storage: Path, named: str) -> None:
    held = folder.hold(storage / MIDDLE)
    with pytest.raises(ConfigError, match=f"sweep {MIDDLE} is still running on this machine; stop it, or wait"):
        find_sweep(storage, named, patience_s=0.1)
    threading.Timer(0.1, held.release).start()
    assert find_sweep(storage, named, patience_s=30.0).name == MIDDLE


def test_nobody_waits_for_the_end_of_a_named_sweep_whose_parent_lives(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    owned, held = folder.own(storage / MIDDLE), folder.hold(storage / MIDDLE)
    with pytest.raises(ConfigError, match=f"sweep {MIDDLE} is still running"):
        find_sweep(storage, MIDDLE)
    held.release()
    owned.release()
    assert find_sweep(storage, MIDDLE).name == MIDDLE


@pytest.mark.parametrize("named", ["last", MIDDLE])
def test_a_sweep_whose_results_are_being_sent_is_refused(storage: Path, named: str) -> None:
    (storage / MIDDLE / "tracking").mkdir()
    with (storage / MIDDLE / "tracking" / "lock").open("w") as flushing:
        fcntl.flock(flushing, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=f"the results of sweep {MIDDLE} are just being sent by plato flush"):
            find_sweep(storage, named, patience_s=0.0)
    assert find_sweep(storage, named).name == MIDDLE


def going_on(storage: Path, max_iterations: int) -> SweepConfig:
    config = resumed_config(storage / OLD, {"max_iterations": max_iterations})
    return config.model_copy(update={"storage_path": str(storage)})


def test_of_two_that_go_on_with_a_sweep_the_second_touches_nothing(storage: Path) -> None:
    first, second = going_on(storage, 60), going_on(storage, 80)
    with process.SweepProcess(first, at_once=False) as winner:
        before = (winner.sweep_dir / folder.CONFIG_NAME).read_text()
        with pytest.raises(ConfigError, match=f"sweep {OLD} is still running"):
            process.SweepProcess(second, at_once=False)
        assert (winner.sweep_dir / folder.CONFIG_NAME).read_text() == before
    with process.SweepProcess(second, at_once=False):
        assert resumed_config(storage / OLD, {}).max_iterations == 80


def test_a_sweep_that_lost_its_parent_has_a_new_one_when_its_own_process_has_ended(storage: Path) -> None:
    orphan = folder.hold(storage / OLD)
    with pytest.raises(ConfigError, match=f"sweep {OLD} is still running"):
        folder.own(storage / OLD, patience_s=0.1)
    assert not folder.has_parent(storage / OLD)
    threading.Timer(0.1, orphan.release).start()
    folder.own(storage / OLD, patience_s=30.0).release()


def test_a_sweeps_process_is_no_parent_when_its_parent_is_killed(storage: Path) -> None:
    with process.SweepProcess(going_on(storage, 60)) as running:
        assert running._child is not None
        os.kill(running._child.pid, signal.SIGSTOP)
        assert folder.has_parent(running.sweep_dir)
        running._owned.release()  # as the kernel does
        assert not folder.has_parent(running.sweep_dir)


def test_a_process_that_was_started_ahead_in_vain_gives_the_sweep_back(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.SweepProcess, "_start", lambda self: None)
    executions.prepare(going_on(storage, 70))
    with executions.adopt(going_on(storage, 80)) as adopted:
        assert adopted.config.max_iterations == 80
    executions.prepare(going_on(storage, 80))
    executions.discard()
    assert not folder.has_parent(storage / OLD)
    assert not folder.is_running(storage / OLD)


def test_a_sweep_goes_on_with_its_own_settings(storage: Path) -> None:
    config = resumed_config(storage / OLD, {})
    assert (config.resume, config.seed, config.num_tune_samples) == (OLD, 5, 3)
    assert resumed_config(storage / OLD, {"num_tune_samples": 3}) == config  # said again is not changed


def test_a_sweep_goes_on_in_the_folder_where_it_is_now(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "mounted"
    begun = load_config({"preset": "test-local", "storage_path": str(storage)}, None, {})
    (storage / OLD / folder.CONFIG_NAME).write_text(begun.to_yaml())
    storage.rename(other)
    config = resumed_config(other / OLD, {})
    assert config.storage_folder == other
    with process.SweepProcess(config, at_once=False) as going_on_there:
        assert going_on_there.sweep_dir == other / OLD
    assert not storage.exists()


def test_a_larger_budget_may_be_given_and_a_smaller_one_not(storage: Path) -> None:
    assert resumed_config(storage / OLD, {"max_iterations": 80}).max_iterations == 80
    with pytest.raises(ConfigError, match="max_iterations: 10 is less than the 60"):
        resumed_config(storage / OLD, {"max_iterations": 10})


def test_a_limit_for_a_sweep_that_had_none_is_refused(storage: Path) -> None:
    config = load_config({"preset": "test-local", "max_iterations": None, "stop_reward": 9}, None, {})
    (storage / OLD / folder.CONFIG_NAME).write_text(config.to_yaml())
    with pytest.raises(ConfigError, match=f"max_iterations: 200 is less than no limit of sweep {OLD}; "):
        resumed_config(storage / OLD, {"max_iterations": 200})


def test_a_changed_setting_is_refused(storage: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_tune_samples: 8 is not what sweep .* was started with"):
        resumed_config(storage / OLD, {"num_tune_samples": 8})


def test_the_command_line_resumes_whatever_preset_and_environment_say(storage: Path) -> None:
    flags = {"resume": "last", "storage_path": str(storage), "test_local": True}
    config = load_config(flags, None, {"PLATO_NUM_TUNE_SAMPLES": "16"})
    assert (config.resume, config.num_tune_samples, config.preset) == (MIDDLE, 3, "test-local")


def test_a_file_counts_as_what_was_given(storage: Path, tmp_path: Path) -> None:
    flags = {"resume": OLD, "storage_path": str(storage)}
    (file := tmp_path / "settings.yaml").write_text("num_tune_samples: 16\n")
    with pytest.raises(ConfigError, match="num_tune_samples: 16 is not what sweep"):
        load_config(flags, file, {})
    file.write_text("algorithm: {PPO: 1}\n")
    with pytest.raises(ConfigError, match="algorithm"):
        load_config(flags, file, {})
    file.write_text("max_iterations: 60\nnum_tune_samples: 3\npreset: nightly\n")
    environ = {"PLATO_MUTATIONS": "{gamma: [0.8, 0.9]}", "PLATO_MAX_ITERATIONS": "70"}
    assert load_config(flags, file, environ).max_iterations == 60
    assert load_config(flags | {"max_iterations": 65}, file, {}).max_iterations == 65


def test_the_file_that_a_sweep_was_started_with_may_be_given_again(storage: Path) -> None:
    (file := storage / "settings.yaml").write_text(
        "num_tune_samples: 2\nhyperparameters: {gamma: 0.9}\nmutations: {clip_param: [0.1, 0.3]}\n"
    )
    begun = load_config({"preset": "test-local"}, file, {})
    assert len(begun.mutations) > 1  # beside the file's own, the preset's
    (storage / OLD / folder.CONFIG_NAME).write_text(begun.to_yaml())
    flags = {"resume": OLD, "storage_path": str(storage)}
    again = load_config(flags, file, {"PLATO_HYPERPARAMETERS": "{gamma: 0.8}"})
    assert again.mutations == begun.mutations
    assert load_config(flags, storage / OLD / folder.CONFIG_NAME, {}) == again
    file.write_text("mutations: {clip_param: [0.1, 0.4]}\n")
    with pytest.raises(ConfigError, match=r"mutations: .* is not what sweep"):
        load_config(flags, file, {})


def test_a_deployment_looks_in_the_folder_of_its_own_form(storage: Path) -> None:
    shown = form_values("test-local", storage_path=str(storage), num_tune_samples=3)
    assert from_form(shown | {"resume": "last"}, {}, shown).resume == MIDDLE
    assert from_form({"resume": "last"}, {}, shown).resume == MIDDLE


def test_a_sweep_that_trained_and_was_not_fetched_is_unfinished(storage: Path) -> None:
    folder.record_end(storage / MIDDLE, "finished")
    assert find_sweep(storage, "last").name == MIDDLE
    folder.record_done(storage / MIDDLE)
    assert find_sweep(storage, "last").name == OLD

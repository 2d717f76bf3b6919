"""Trials that share CPUs train one at a time on each."""

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plato_core.training.cpus import LOOK_AGAIN, CpuPlaces, shares_cpus


def _work(seconds: float) -> None:
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def _free(folder: Path) -> int:
    """How many places nobody holds."""
    free = 0
    for path in folder.glob("cpu-[0-9]*.lock"):
        file = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free += 1
        except BlockingIOError:
            pass
        finally:
            os.close(file)
    return free


def _trial(folder: Path, cpus: int, log: int) -> None:
    places = CpuPlaces(folder, cpus)
    for _ in range(4):
        with places.place():
            os.write(log, b"+")
            _work(0.02)
            os.write(log, b"-")


@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_no_more_train_at_once_than_there_are_cpus(tmp_path: Path, cpus: int) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    trials = [multiprocessing.get_context("fork").Process(target=_trial, args=(tmp_path, cpus, log)) for _ in range(5)]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join()
    os.close(log)

    marks = (tmp_path / "log").read_text()
    at_once = list(itertools.accumulate(1 if mark == "+" else -1 for mark in marks))

    assert len(marks) == 40
    assert max(at_once) <= cpus


@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_as_many_train_at_once_as_there_are_cpus(tmp_path: Path, cpus: int) -> None:
    with contextlib.ExitStack() as training:
        for held in range(1, cpus + 1):
            training.enter_context(CpuPlaces(tmp_path, cpus).place())
            assert _free(tmp_path) == cpus - held


def test_a_place_is_given_back_at_its_end_and_when_training_fails(tmp_path: Path) -> None:
    places = CpuPlaces(tmp_path, 1)

    with places.place():
        assert _free(tmp_path) == 0
        _work(0.01)
    assert _free(tmp_path) == 1

    with pytest.raises(RuntimeError, match="diverged"), places.place():
        raise RuntimeError("diverged")
    assert _free(tmp_path) == 1


def test_a_killed_trial_gives_its_place_back(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from plato_core.training.cpus import CpuPlaces\n"
        "with CpuPlaces(Path(sys.argv[1]), 1).place():\n    print('has it', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has it\n"
    assert _free(tmp_path) == 0
    holder.kill()
    holder.wait()
    holder.stdout.close()

    with CpuPlaces(tmp_path, 1).place():
        assert _free(tmp_path) == 0


def test_a_trial_that_hangs_with_its_place_does_not_hold_up_the_others(tmp_path: Path) -> None:
    hanging, other = CpuPlaces(tmp_path, 1), CpuPlaces(tmp_path, 1, patience_s=0.2)

    with hanging.place():
        began = time.monotonic()
        with other.place():
            waited = time.monotonic() - began
        began = time.monotonic()
        for _ in range(LOOK_AGAIN):  # not at each iteration anew
            with other.place():
                pass
        then = time.monotonic() - began

    assert waited >= 0.2
    assert then < 0.2


def test_where_an_iteration_is_long_others_wait_for_it_longer(tmp_path: Path) -> None:
    long, other = CpuPlaces(tmp_path, 1), CpuPlaces(tmp_path, 1, patience_s=0.05)
    with other.place():
        _work(0.3)

    with long.place():
        began = time.monotonic()
        with other.place():
            waited = time.monotonic() - began

    assert waited >= 0.9


def test_a_trial_that_waits_for_a_simulator_elsewhere_keeps_no_cpu_from_the_others(tmp_path: Path) -> None:
    places = CpuPlaces(tmp_path, 1)
    with places.place():
        assert _free(tmp_path) == 0
        time.sleep(0.05)

    for _ in range(LOOK_AGAIN):
        with places.place():
            assert _free(tmp_path) == 1

    with places.place():
        assert _free(tmp_path) == 0
        _work(0.05)
    with places.place():  # busy now
        assert _free(tmp_path) == 0


def test_an_algorithm_that_waits_while_it_is_built_has_a_cpu_for_its_iterations(tmp_path: Path) -> None:
    places = CpuPlaces(tmp_path, 1)
    with places.place(judged=False):
        assert _free(tmp_path) == 0
        time.sleep(0.2)  # for a cold disk

    with places.place():
        assert _free(tmp_path) == 0


@pytest.mark.parametrize(
    ("cpus", "env_runners", "shares"),
    [(0.5, 0, True), (0.6667, 0, True), (1.0, 0, False), (2.0, 0, False), (0.5, 2, False)],
)
def test_trials_share_cpus_where_each_has_less_than_one(cpus: float, env_runners: int, shares: bool) -> None:
    assert shares_cpus(cpus, env_runners) is shares

"""Whom `plato up` and `plato down` take for a part of the stack, and what they refuse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plato_core.cli import main
from plato_core.stack.ending import end
from plato_core.stack.processes import SUPERVISOR, Recorded, State, kill, lock, mark, marked, state_file
from plato_core.stack.settings import MLFLOW, PREFECT, WORKER, StackSettings

PORTS = {PREFECT: 4200, MLFLOW: 5000}
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "stack").mkdir()
    return folder


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> StackSettings:
    monkeypatch.setenv("PLATO_STACK_FOLDER", str(folder))
    return StackSettings()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def gone() -> Recorded:
    """A process that has ended."""
    process = subprocess.Popen(SLEEP)
    recorded = Recorded.of(process.pid)
    process.kill()
    process.wait()
    return recorded


def test_a_later_process_with_the_same_id_is_another(stranger: subprocess.Popen[bytes]) -> None:
    recorded = Recorded.of(stranger.pid)
    assert recorded.find() == psutil.Process(stranger.pid)
    assert Recorded(pid=stranger.pid, create_time=recorded.create_time - 100).find() is None


def test_an_ended_child_that_nobody_has_waited_for_does_not_run(stranger: subprocess.Popen[bytes]) -> None:
    recorded = Recorded.of(stranger.pid)
    stranger.kill()
    while psutil.Process(stranger.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert recorded.find() is None


def test_down_touches_no_stranger_that_has_got_a_recorded_id(
    settings: StackSettings, stranger: subprocess.Popen[bytes]
) -> None:
    before_reboot = Recorded(pid=stranger.pid, create_time=1.0)
    state = State(supervisor=before_reboot, ports=PORTS, parts={PREFECT: before_reboot, WORKER: before_reboot})
    state.write(settings.folder)
    assert end(settings, lambda word, text: None) is False
    assert stranger.poll() is None
    assert not state_file(settings.folder).exists()


def test_down_ends_what_carries_the_mark_though_nothing_is_recorded(
    settings: StackSettings, stranger: subprocess.Popen[bytes]
) -> None:
    environment = {**os.environ, **mark(MLFLOW, settings.folder)}
    process = subprocess.Popen(SLEEP, env=environment, start_new_session=True)
    other = subprocess.Popen(SLEEP, env={**os.environ, **mark(MLFLOW, settings.folder / "other")})
    try:
        said: list[str] = []
        assert end(settings, lambda word, text: said.append(f"{word} {text}")) is True
        assert process.wait(5.0) != 0
        assert other.poll() is None  # of a stack in another folder
        assert stranger.poll() is None
        assert said == ["ended MLflow server"]
    finally:
        other.kill()
        other.wait()


def test_kill_ends_what_ignores_sigterm(folder: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **mark(WORKER, folder)})
    kill(marked(WORKER, folder))
    assert process.wait(5.0) != 0


def test_a_folder_has_one_supervisor_at_a_time(folder: Path) -> None:
    with lock(folder) as first, lock(folder) as second:
        assert (first, second) == (True, False)
    with lock(folder) as again:
        assert again


def test_the_state_is_read_as_written_and_half_a_file_is_none(folder: Path, stranger: subprocess.Popen[bytes]) -> None:
    state = State(supervisor=gone(), ports=PORTS, parts={PREFECT: Recorded.of(stranger.pid), MLFLOW: gone()})
    state.write(folder)
    read = State.read(folder)
    assert read is not None
    assert read == state
    assert read.running() == {PREFECT}
    assert SUPERVISOR not in read.running()
    state_file(folder).write_text(state.model_dump_json()[:40])
    assert State.read(folder) is None


def test_down_with_nothing_up_says_so(settings: StackSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down"]) == 0
    assert f"nothing of a stack in {settings.folder} was running" in capsys.readouterr().out


def test_up_outside_of_a_project_says_where_to_run_it(
    settings: StackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["up"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/prefect.yaml: there is no such file; run this in the project's folder\n"
    )
    assert list(settings.folder.iterdir()) == []


@pytest.mark.parametrize(("variable", "part"), [("PREFECT_PORT", "Prefect server"), ("MLFLOW_PORT", "MLflow server")])
def test_a_port_that_is_taken_is_named_before_anything_starts(
    settings: StackSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    part: str,
) -> None:
    (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
        other.close()
        for name in ("PREFECT_PORT", "MLFLOW_PORT"):
            monkeypatch.setenv(f"PLATO_STACK_{name}", str(free))
        monkeypatch.setenv(f"PLATO_STACK_{variable}", str(port := taken.getsockname()[1]))
        assert main(["up"]) == 2
    error = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1, for the {part}," in error
    assert f"PLATO_STACK_{variable}" in error
    assert not list(settings.folder.glob("**/*.log"))

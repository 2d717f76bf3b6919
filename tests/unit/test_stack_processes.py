"""Whom `plato up` and `plato down` take for a part of the stack, and what they refuse."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from plato_core.cli import main
from plato_core.processes import kill
from plato_core.stack.api import StackApi
from plato_core.stack.ending import end, no_new_runs
from plato_core.stack.parts import Part
from plato_core.stack.processes import SUPERVISOR, Recorded, State, flow_runs, lock, mark, marked, state_file
from plato_core.stack.settings import MLFLOW, PREFECT, WORK_POOL, WORKER, StackSettings
from plato_core.stack.supervisor import Supervisor

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
    assert recorded.model_copy(update={"birth": f"{recorded.birth}0"}).find() is None


def test_a_process_is_the_same_after_a_step_of_the_clock(
    stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded.of(stranger.pid)
    shown = psutil.Process(stranger.pid).create_time()
    boot = psutil.boot_time()
    # Linux reckons the boot time from the clock; psutil reads it anew for each process.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600.0)
    assert psutil.Process(stranger.pid).create_time() == pytest.approx(shown + 3600.0, abs=1.0)
    assert recorded.find() is not None


def test_an_ended_child_that_nobody_has_waited_for_does_not_run(stranger: subprocess.Popen[bytes]) -> None:
    recorded = Recorded.of(stranger.pid)
    stranger.kill()
    while psutil.Process(stranger.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert recorded.find() is None


def test_down_touches_no_stranger_that_has_got_a_recorded_id(
    settings: StackSettings, stranger: subprocess.Popen[bytes]
) -> None:
    before_reboot = Recorded(pid=stranger.pid, birth="of the last boot:1", started=1.0)
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


def test_down_ends_the_recorded_supervisor_though_it_has_no_mark(
    settings: StackSettings, stranger: subprocess.Popen[bytes]
) -> None:
    State(supervisor=Recorded.of(stranger.pid), ports=PORTS).write(settings.folder)
    assert end(settings, lambda word, text: None) is True
    assert stranger.wait(5.0) == -signal.SIGTERM
    assert not state_file(settings.folder).exists()


def test_down_does_not_say_so_while_a_supervisor_holds_the_folder(
    settings: StackSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    State(supervisor=gone(), ports=PORTS).write(settings.folder)
    with lock(settings.folder):
        assert main(["down"]) == 1
    assert "has a supervisor that cannot be seen from here" in capsys.readouterr().err
    assert state_file(settings.folder).exists()


def test_a_stack_is_the_same_through_a_link_to_its_folder(
    settings: StackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (link := tmp_path / "link").symlink_to(settings.folder)
    monkeypatch.setenv("PLATO_STACK_FOLDER", str(link))
    assert StackSettings().folder == settings.folder


class Pool(StackApi):
    """The server's work pool."""

    def __init__(self, settings: StackSettings, paused: bool) -> None:
        super().__init__(settings)
        self.paused = paused

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        assert path == f"/work_pools/{WORK_POOL}"
        if body is not None:
            self.paused = body["is_paused"]
        return {"is_paused": self.paused}


@pytest.mark.parametrize("paused", [True, False])
def test_the_work_pool_is_paused_while_runs_end_and_is_then_as_before(settings: StackSettings, paused: bool) -> None:
    pool = Pool(settings, paused)
    with no_new_runs(pool, lambda word, text: None):
        assert pool.paused
    assert pool.paused == paused


@pytest.fixture
def supervisor(settings: StackSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setattr("plato_core.stack.supervisor._MAX_PAUSE_S", 0.01)
    monkeypatch.setattr("plato_core.stack.supervisor._TICK_S", 0.01)
    before = signal.getsignal(signal.SIGTERM)
    settings.logs.mkdir()
    yield Supervisor(settings)
    signal.signal(signal.SIGTERM, before)


def test_a_fault_with_one_part_ends_neither_the_supervisor_nor_the_others(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[str] = []

    def keep(part: Part) -> None:
        kept.append(part.name)
        if len(kept) >= 6:
            os.kill(os.getpid(), signal.SIGTERM)
        if part.name == PREFECT:
            raise ValueError("no JSON")

    monkeypatch.setattr(supervisor, "_keep", keep)
    supervisor.run()
    assert kept == [PREFECT, MLFLOW, WORKER] * 2
    assert "prefect: ValueError: no JSON; trying again in 0.01 s" in capsys.readouterr().out


def test_a_new_worker_finds_no_run_that_its_predecessor_took_up_and_nobody_runs(
    supervisor: Supervisor, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(StackApi, "unfinished", lambda self: ["lives-on", "never-started"])
    monkeypatch.setattr(StackApi, "set_state", lambda self, run, state, *_, **__: ended.append(f"{run} {state}"))
    environment = {**os.environ, **mark(WORKER, settings.folder), "PREFECT__FLOW_RUN_ID": "lives-on"}
    process = subprocess.Popen(SLEEP, env=environment, start_new_session=True)
    try:
        while not flow_runs(marked(WORKER, settings.folder)):  # for a moment it has no environment yet
            time.sleep(0.01)
        supervisor._close_runs()
    finally:
        process.kill()
        process.wait()
    assert ended == ["never-started CRASHED"]


def test_a_log_that_gets_large_is_cut_under_its_writers(
    supervisor: Supervisor, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plato_core.stack.supervisor._LOG_BYTES", 10)
    monkeypatch.setattr(supervisor, "_start", lambda part: os.kill(os.getpid(), signal.SIGTERM))
    with (settings.logs / "mlflow.log").open("ab", buffering=0) as log:
        log.write(b"more than ten bytes\n")
        supervisor.run()
        log.write(b"and on\n")
    assert (settings.logs / "mlflow.log").read_text() == "and on\n"
    assert (settings.logs / "mlflow.log.1").read_text() == "more than ten bytes\n"


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

"""`plato down`: the supervisor ended first, then the worker with its sweeps, then the servers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

import httpx
import psutil

from plato_core.errors import StackError
from plato_core.processes import kill, wait_gone
from plato_core.report.text import counted
from plato_core.stack.api import StackApi
from plato_core.stack.parts import SERVERS, TITLES
from plato_core.stack.processes import SUPERVISOR, State, lock, marked, state_file
from plato_core.stack.settings import PREFECT, WORK_POOL, WORKER, StackSettings

# A sweep that is told to end writes a last checkpoint of each trial, in up to 20 s, and tells both servers.
RUNS_S = 40.0
_SERVERS_S = 10.0
_WHY = "The local stack was ended by `plato down`."


def end(settings: StackSettings, say: Callable[[str, str], None]) -> bool:
    """Ends all of a stack's processes and no other.

    Args:
        settings: Of the stack.
        say: Is told each step as a word and what it is about.

    Returns:
        Whether anything ran.

    Raises:
        StackError: Something of it still runs.
    """
    supervisors = _members(SUPERVISOR, settings, State.read(settings.folder))
    _terminate(supervisors)
    kill(wait_gone(supervisors, _SERVERS_S))
    state = State.read(settings.folder)  # not before: it may have started a part in its last moment
    ran = _end_worker(settings, state, say)
    running = {name: processes for name in SERVERS if (processes := _members(name, settings, state))}
    for processes in running.values():
        _terminate(process for process in processes if _leads_session(process))
    for name, processes in running.items():
        kill(wait_gone(processes, _SERVERS_S))
        say("ended", TITLES[name])
    _check_all_ended(settings, state)
    state_file(settings.folder).unlink(missing_ok=True)
    return ran or bool(running or supervisors)


def _end_worker(settings: StackSettings, state: State | None, say: Callable[[str, str], None]) -> bool:
    """Ends the worker after its flow runs, which it would kill outright. They are cancelled, as by a person."""
    worker = _leader(state, WORKER)
    if not _members(WORKER, settings, state):
        return False
    api = _api(settings, state)
    deadline = time.monotonic() + RUNS_S
    with contextlib.nullcontext() if api is None else no_new_runs(api, say):
        if api is not None:  # else they are told by signal, below
            with contextlib.suppress(httpx.HTTPError):
                _cancel_runs(api, say, deadline if worker is not None else 0.0)
        if worker is not None:
            _terminate([worker])
            wait_gone([worker], _SERVERS_S)
        left = marked(WORKER, settings.folder)
        _terminate(process for process in left if _leads_session(process))  # engines and sweeps, which end in order
        wait_gone(left, max(deadline - time.monotonic(), 5.0))
        kill(_members(WORKER, settings, state))
        if api is not None:
            with contextlib.suppress(httpx.HTTPError):
                for run in api.unfinished():
                    api.set_state(run, "CANCELLED", _WHY, force=True)
    say("ended", TITLES[WORKER])
    return True


def _cancel_runs(api: StackApi, say: Callable[[str, str], None], deadline: float) -> None:
    told: set[str] = set()
    while runs := api.unfinished():
        if not told:
            say("ending", f"{counted(len(runs), 'flow run')}, in up to {RUNS_S:g} s: sweeps write last checkpoints")
        for run in runs:
            if run not in told:  # one that the worker took up in the last moment comes later
                api.set_state(run, "CANCELLING", _WHY)
        told.update(runs)
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)


@contextlib.contextmanager
def no_new_runs(api: StackApi, say: Callable[[str, str], None]) -> Iterator[None]:
    """Pauses the work pool meanwhile: as one run ends, the worker would take up the next, which would be cancelled.

    Args:
        api: Of the server.
        say: Is told if the pool could not be given back as it was.
    """
    resume = False
    with contextlib.suppress(httpx.HTTPError):
        if resume := not api.work_pool_is_paused():
            api.pause_work_pool(True)
    try:
        yield
    finally:
        try:
            if resume:
                api.pause_work_pool(False)
        except httpx.HTTPError:
            say("paused", f"the work pool stays so; after `plato up`: prefect work-pool resume {WORK_POOL}")


def _check_all_ended(settings: StackSettings, state: State | None) -> None:
    left = [process.pid for name in (SUPERVISOR, *TITLES) for process in _members(name, settings, state)]
    if left:
        raise StackError(f"of the stack in {settings.folder} there still runs: process {', '.join(map(str, left))}")
    if settings.folder.is_dir():
        with lock(settings.folder) as free:
            if not free:
                raise StackError(
                    f"the stack in {settings.folder} has a supervisor that cannot be seen from here (it holds the file "
                    "`lock` there); run `plato down` as the user, or in the container, that started it"
                )


def _api(settings: StackSettings, state: State | None) -> StackApi | None:
    """The stack's own Prefect server, if it runs: the settings may name another stack's port by now."""
    if state is None or _leader(state, PREFECT) is None:
        return None
    return StackApi(settings.model_copy(update={"prefect_port": state.ports[PREFECT]}))


def _terminate(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()


def _leads_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _members(name: str, settings: StackSettings, state: State | None) -> list[psutil.Process]:
    """All processes of a part: those with its mark, and the recorded one, should that have none."""
    found = marked(name, settings.folder)
    leader = _leader(state, name)
    return found if leader is None or leader in found else [*found, leader]


def _leader(state: State | None, name: str) -> psutil.Process | None:
    recorded = state.recorded.get(name) if state is not None else None
    return recorded.find() if recorded is not None else None

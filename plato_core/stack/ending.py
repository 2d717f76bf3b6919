"""`plato down`: the supervisor ended first, then the worker with its sweeps, then the servers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable

import httpx
import psutil

from plato_core.report.text import counted
from plato_core.stack.api import StackApi
from plato_core.stack.parts import SERVERS, TITLES
from plato_core.stack.processes import SUPERVISOR, State, kill, marked, state_file, wait_gone
from plato_core.stack.settings import PREFECT, WORKER, StackSettings

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
    """
    supervisors = marked(SUPERVISOR, settings.folder)
    _terminate(supervisors)
    kill(wait_gone(supervisors, _SERVERS_S))
    state = State.read(settings.folder)  # not before: it may have started a part in its last moment
    ran = _end_worker(settings, state, say)
    running = {name: processes for name in SERVERS if (processes := marked(name, settings.folder))}
    for processes in running.values():
        _terminate(process for process in processes if _leads_session(process))
    for name, processes in running.items():
        kill(wait_gone(processes, _SERVERS_S))
        say("ended", TITLES[name])
    state_file(settings.folder).unlink(missing_ok=True)
    return ran or bool(running or supervisors)


def _end_worker(settings: StackSettings, state: State | None, say: Callable[[str, str], None]) -> bool:
    """Ends the worker after its flow runs, which it would kill outright. They are cancelled, as by a person."""
    worker = _leader(state, WORKER)
    if not marked(WORKER, settings.folder):
        return False
    api = _api(settings, state)
    deadline = time.monotonic() + RUNS_S
    if api is not None:  # else they are told by signal, below
        with contextlib.suppress(httpx.HTTPError):
            if runs := api.unfinished():
                say("ending", f"{counted(len(runs), 'flow run')}, in up to {RUNS_S:g} s: sweeps write last checkpoints")
            for run in runs:
                api.set_state(run, "CANCELLING", _WHY)
            while worker is not None and api.unfinished() and time.monotonic() < deadline:
                time.sleep(0.5)
    if worker is not None:
        _terminate([worker])
        wait_gone([worker], _SERVERS_S)
    left = marked(WORKER, settings.folder)
    _terminate(process for process in left if _leads_session(process))  # engines and sweeps, which end in order
    wait_gone(left, max(deadline - time.monotonic(), 5.0))
    kill(marked(WORKER, settings.folder))
    if api is not None:
        with contextlib.suppress(httpx.HTTPError):
            for run in api.unfinished():
                api.set_state(run, "CANCELLED", _WHY, force=True)
    say("ended", TITLES[WORKER])
    return True


def _api(settings: StackSettings, state: State | None) -> StackApi | None:
    """The stack's own Prefect server, if it runs: the settings may name another stack's port by now."""
    if state is None or _leader(state, PREFECT) is None:
        return None
    return StackApi(settings.model_copy(update={"prefect_port": state.ports[PREFECT]}))


def _terminate(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()


def _leads_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _leader(state: State | None, name: str) -> psutil.Process | None:
    recorded = state.parts.get(name) if state is not None else None
    return recorded.find() if recorded is not None else None

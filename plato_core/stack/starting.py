"""`plato up`: the stack started as far as it is not up, the project deployed, the addresses printed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from plato_core.deploying import PREFECT_YAML, prefect_yaml
from plato_core.errors import ConfigError, StackError
from plato_core.prefect_database import put_in_place
from plato_core.report.text import hide_passwords
from plato_core.stack.api import StackApi
from plato_core.stack.ending import end
from plato_core.stack.parts import PORT_VARIABLES, SERVERS, TITLES, client_environment
from plato_core.stack.processes import SUPERVISOR, State, mark, marked
from plato_core.stack.settings import PREFIX, WORKER, StackSettings
from plato_core.tracking.client import make_client

_START_S = 180.0  # a new database on a busy machine; 10 to 20 s as a rule
_TICK_S = 0.2
Say = Callable[[str, str], None]


def start(settings: StackSettings, project: Path, say: Say) -> None:
    """Brings the stack up and deploys the project.

    Args:
        settings: Of the stack.
        project: The folder with `prefect.yaml`.
        say: Is told each step as a word and what it is about.

    Raises:
        ConfigError: There is no `prefect.yaml`, a port is taken, or the stack is up with other ports.
        StackError: A part does not start, or the deployments cannot be applied.
    """
    prefect_yaml(project)
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.logs.mkdir(exist_ok=True)
    state = State.read(settings.folder)
    running = state.running() if state is not None else set()
    _check_ports(settings, state, running)
    if SUPERVISOR in running:
        say("up", f"the stack in {settings.folder} is up already; what is missing is started")
        _wait_for_parts(settings, say)
    else:
        say("folder", str(settings.folder))
        say("starting", " and ".join(TITLES[name] for name in TITLES if name not in running) or "the supervisor")
        if settings.mlflow_store_uri is None:
            make_client(settings.mlflow_database)  # whole or not at all, which the server does not care for
        if settings.prefect_database_url is None:
            put_in_place(settings.folder / "prefect")
        try:
            _wait_for_parts(settings, say, _supervise(settings))
        except BaseException:  # Ctrl-C too: half a stack is of no use
            if not running:
                end(settings, lambda word, text: None)
            raise
    _deploy(settings, project, say)


def _check_ports(settings: StackSettings, state: State | None, running: set[str]) -> None:
    """Has each server's port be free, or be the one that it listens on already."""
    for part, port in settings.ports.items():
        if state is not None and running:
            if state.ports[part] != port:
                raise ConfigError(
                    f"{PORT_VARIABLES[part]}: the stack in {settings.folder} runs with port {state.ports[part]}, "
                    f"not {port}; run `plato down` first"
                )
            if SUPERVISOR in running:
                continue
        if marked(part, settings.folder):
            continue  # of a supervisor that was killed; the next one takes it over, or ends what is left of it
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of 127.0.0.1, for the {TITLES[part]}, cannot be used ({error.strerror}); "
                    f"end what listens there or set {PORT_VARIABLES[part]} to another"
                ) from None


def _supervise(settings: StackSettings) -> subprocess.Popen[bytes]:
    """Starts the supervisor, detached from this terminal."""
    with (settings.logs / f"{SUPERVISOR}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "plato_core.stack"],
            env=os.environ | {f"{PREFIX}FOLDER": str(settings.folder)} | mark(SUPERVISOR, settings.folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_for_parts(settings: StackSettings, say: Say, started: subprocess.Popen[bytes] | None = None) -> None:
    """Returns when the servers answer and the worker polls.

    Args:
        settings: Of the stack.
        say: Is told of each part.
        started: The supervisor, if it is a new one.
    """
    began = time.monotonic()
    api = StackApi(settings)
    starts_before: dict[str, int] | None = None if started is None else {}
    waiting = [*SERVERS, WORKER]
    while waiting:
        state = State.read(settings.folder)
        if state is None or SUPERVISOR not in state.running():
            if started is not None and started.poll():
                raise _does_not_start(settings, SUPERVISOR)
            state = None
        elif starts_before is None:
            starts_before = dict(state.starts)
        for name in list(waiting):
            if state is not None and starts_before is not None:
                if _ready(name, state, api):
                    waiting.remove(name)
                    say("ready", f"{TITLES[name]} after {time.monotonic() - began:.0f} s")
                    continue
                if state.starts.get(name, 0) > starts_before.get(name, 0) + 1:
                    raise _does_not_start(settings, name)
            if time.monotonic() - began > _START_S:
                raise _does_not_start(settings, name)
        time.sleep(_TICK_S)


def _ready(name: str, state: State, api: StackApi) -> bool:
    recorded = state.parts.get(name)
    if recorded is None or recorded.find() is None:
        return False
    return api.worker_polls(since=recorded.started) if name == WORKER else api.healthy(name)


def _does_not_start(settings: StackSettings, name: str) -> StackError:
    log = settings.logs / f"{name}.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return StackError(f"the {TITLES.get(name, name)} does not start ({hide_passwords(last)}); its log is {log}")


def _deploy(settings: StackSettings, project: Path, say: Say) -> None:
    say("deploying", f"the sweeps of {project / PREFECT_YAML}")
    done = subprocess.run(
        [sys.executable, "-m", "plato_core.cli", "deploy"],
        cwd=project,
        # As a shell has it: `{{ $PWD }}` in prefect.yaml is the folder in which runs work.
        env=client_environment(settings, os.environ) | {"PWD": str(project)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        kind = ConfigError if done.returncode == ConfigError.exit_code else StackError
        message = done.stderr.strip().rpartition("error: ")[2]
        raise kind(f"{message}; the servers are up: correct it and run `plato up` again")
    for line in done.stdout.splitlines():
        say("deployed", line)

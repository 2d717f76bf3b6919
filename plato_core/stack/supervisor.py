"""The supervisor: one process that starts the parts, and starts again whichever ends.

A Prefect worker gives up by itself after a long outage of its server, and sweeps are to start every night.
It only keeps parts running: `plato down` ends it first and the parts after it, so that one place knows how to.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx

from plato_core.processes import kill
from plato_core.stack.api import StackApi
from plato_core.stack.parts import Part, parts
from plato_core.stack.processes import SUPERVISOR, Recorded, State, flow_runs, lock, marked
from plato_core.stack.settings import PREFECT, WORKER, StackSettings

_TICK_S = 0.5
_STEADY_S = 60.0  # after so long, an end is no more of the same trouble
_MAX_PAUSE_S = 60.0
_LOG_BYTES = 20 * 2**20


@dataclass
class _Trouble:
    """How often a part ended soon after its start, and from when on it may be started again (monotonic)."""

    ends: int = 0
    not_before: float = 0.0


def main() -> int:
    """Keeps the stack of the environment's settings running until SIGTERM."""
    settings = StackSettings()
    with lock(settings.folder) as held:
        if not held:
            return 0  # another was faster, and does the same
        Supervisor(settings).run()
    return 0


class Supervisor:
    """Keeps the parts of one stack.

    Args:
        settings: Of the stack; its folder exists.
    """

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        self._parts = parts(settings, os.environ)
        self._api = StackApi(settings)
        self._children: list[subprocess.Popen[bytes]] = []
        self._trouble = {name: _Trouble() for name in self._parts}
        self._stop = threading.Event()
        before = State.read(settings.folder)  # of one that was killed: its parts run on and are taken over
        self._state = State(
            supervisor=Recorded.of(os.getpid()),
            ports=settings.ports,
            parts=before.parts if before else {},
        )

    def run(self) -> None:
        """Returns after SIGTERM. The parts run on."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop.set())
        self._state.write(self._settings.folder)
        while not self._stop.is_set():
            pause = _TICK_S
            for part in self._parts.values():
                try:
                    self._keep(part)
                except Exception as error:  # a full disk, an answer that is none: no reason to leave the others alone
                    if not self._settings.folder.is_dir():
                        return  # removed by the user; there is nothing left to keep
                    pause = _MAX_PAUSE_S
                    _say(f"{part.name}: {type(error).__name__}: {error}; trying again in {pause:g} s")
            self._stop.wait(pause)

    def _keep(self, part: Part) -> None:
        for log in (part.log, self._settings.logs / f"{SUPERVISOR}.log"):
            _cut(log)
        self._children = [child for child in self._children if child.poll() is None]  # collects those that ended
        trouble, now = self._trouble[part.name], time.monotonic()
        recorded = self._state.parts.get(part.name)
        if recorded is not None:
            if recorded.find() is not None:
                return
            del self._state.parts[part.name]
            if time.time() - recorded.started > _STEADY_S:
                trouble.ends = 0
            pause = 0.0 if trouble.ends == 0 else min(2.0**trouble.ends, _MAX_PAUSE_S)
            trouble.ends, trouble.not_before = trouble.ends + 1, now + pause
            _say(f"{part.name} ended; it is started again in {pause:g} s")
        if now >= trouble.not_before and self._ready(part):
            self._start(part)

    def _ready(self, part: Part) -> bool:
        """A worker that finds no server or no pool gives up at once."""
        if part.name != WORKER:
            return True
        if PREFECT not in self._state.parts or not self._api.healthy(PREFECT):
            return False
        try:
            self._api.ensure_work_pool()
            self._close_runs()
        except httpx.HTTPError as error:
            _say(f"the work pool is not to be had: {error}")
            return False
        return True

    def _close_runs(self) -> None:
        """Ends, on the server, what the machine's end or a kill cut off: it would be shown as running for good.

        Also what a worker had taken up and not started yet; no worker takes it up again. Runs whose processes live on
        without their worker go on.
        """
        living = flow_runs(marked(WORKER, self._settings.folder))
        for run_id in self._api.unfinished():
            if run_id in living:
                continue
            self._api.set_state(run_id, "CRASHED", "Its process ended together with its worker.", force=True)
            _say(f"flow run {run_id} ended together with its worker")

    def _start(self, part: Part) -> None:
        if part.name != WORKER:  # a server's own children would keep its port; a worker's runs go on to their end
            kill(marked(part.name, self._settings.folder))
        with part.log.open("ab") as log:
            child = subprocess.Popen(
                part.command,
                cwd=self._settings.folder,  # no `prefect.toml` or `.env` of the user's is read from there
                env=part.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(child)
        self._state.parts[part.name] = Recorded.of(child.pid)
        self._state.starts[part.name] = self._state.starts.get(part.name, 0) + 1
        self._state.write(self._settings.folder)
        _say(f"{part.name} started, process {child.pid}")


def _cut(log: Path) -> None:
    """Moves what a large log holds to a second file. Its writers have the first open, and append to it."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)


def _say(line: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", flush=True)

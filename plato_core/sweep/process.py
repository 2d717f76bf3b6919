"""The parent's side of a sweep: its process, its events, and its end without anything left behind."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from plato_core.config import SweepConfig
from plato_core.errors import PlatoError, SweepError
from plato_core.sweep.channel import EVENTS_FD
from plato_core.sweep.events import Event, Failed, parse
from plato_core.sweep.execution import TICK_S, SweepExecution
from plato_core.sweep.lineage import LINEAGE_NAME
from plato_core.sweep.protocol import Go, Prepare

# A cancelled sweep is gone within so many seconds: trials finish an iteration and write a last checkpoint.
STOP_S = 20.0
# What is killed is gone at once, but for a process that waits for a disk or a GPU.
KILL_S = 6.0
LOG_NAME = "sweep.log"


class SweepProcess(SweepExecution):
    """A sweep that runs in a process of its own, in its own session; no process of it is left after it.

    Args:
        config: What to run.
        at_once: Whether its process starts now, to load Ray while others get ready; else with `go`.
        sweep_id: See `SweepExecution`.

    Raises:
        ConfigError: The sweep that is to go on is still being worked on by another process.
    """

    def __init__(self, config: SweepConfig, at_once: bool = True, sweep_id: str | None = None) -> None:
        super().__init__(config, sweep_id)
        self._child: subprocess.Popen[bytes] | None = None
        if at_once:
            self._child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # Not below the storage path: Ray puts sockets there, whose paths may have 107 characters at most.
        self._ray_temp_dir = Path(tempfile.mkdtemp(prefix="plato-", dir="/tmp"))
        reading, writing = os.pipe()
        # Of Prefect's settings of this run the sweep needs none, and Ray's workers would inherit them.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
        environment |= {EVENTS_FD: str(writing), "PYTHONUNBUFFERED": "1"}
        with (self.sweep_dir / LOG_NAME).open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "plato_core.sweep"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[writing],
                start_new_session=True,
            )
        os.close(writing)
        threading.Thread(target=self._read, args=(reading,), name="sweep-events", daemon=True).start()
        self._tell(
            child,
            Prepare(
                sweep_id=self.sweep_id,
                sweep_dir=str(self.sweep_dir),
                ray_temp_dir=str(self._ray_temp_dir),
                config=self.config.flow_parameters(),
            ),
        )
        return child

    def go(self, go: Go) -> None:
        """Lets training begin, tracked as `go` says."""
        self._begun = True
        self._child = self._child or self._start()
        self._tell(self._child, go)

    def stop(self) -> list[Event]:
        """Asks the sweep to end, with a last checkpoint of each trial; after `STOP_S` kills it.

        Returns:
            What the sweep told meanwhile.
        """
        told: list[Event] = []
        if self._child is None:
            return told
        self._hang_up(self._child)
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._child.kill()  # it has had its time; what it started ends in `close`
                break
            if event is None:
                break
            told.append(event)
        return told

    def close(self) -> None:
        """Ends what is left of the sweep's processes and removes Ray's session folder."""
        if (child := self._child) is None:
            return
        self._hang_up(child)
        if child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=5.0 if self._begun else 0.5)
        kill_session(child.pid)
        child.wait()
        shutil.rmtree(self._ray_temp_dir, ignore_errors=True)
        self._forget_unbegun()

    def lineage(self) -> Path:
        """Returns the file of its exploits; no exploit is a fact too."""
        path = self.sweep_dir / LINEAGE_NAME
        path.touch()
        return path

    def _hang_up(self, child: subprocess.Popen[bytes]) -> None:
        """Closes the child's standard input, which is SIGTERM to it; a signal would leave its listener waiting."""
        with contextlib.suppress(OSError):
            if child.stdin is not None:
                child.stdin.close()

    def _tell(self, child: subprocess.Popen[bytes], message: Prepare | Go) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(message.model_dump_json().encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._end_of(child) from None

    def _silent_end(self) -> SweepError:
        assert self._child is not None, "nothing is told before `go`"
        return self._bug(f"its process ended with exit code {self._child.wait()}")

    @property
    def _log(self) -> str:
        return str(self.sweep_dir / LOG_NAME)

    def _end_of(self, child: subprocess.Popen[bytes]) -> PlatoError:
        """Returns why a process ended that nobody had followed yet."""
        code = child.wait()
        with contextlib.suppress(queue.Empty):
            while (event := self._events.get(timeout=TICK_S)) is not None:
                if isinstance(event, Failed):
                    return self._bug(event.message) if event.error_type == "bug" else event.error()
        return self._bug(f"its process ended with exit code {code}")

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as pipe:
            for line in pipe:
                event = parse(line)
                if event is not None:
                    self._events.put(event)
        self._events.put(None)


def kill_session(session: int) -> None:
    """Kills every process of a session: Ray puts its workers into process groups of their own, never elsewhere."""
    ends = time.monotonic() + KILL_S
    while found := [process for process in psutil.process_iter() if _lives_in(process, session)]:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if time.monotonic() > ends:
            return
        time.sleep(0.02)


def _lives_in(process: psutil.Process, session: int) -> bool:
    # One that has ended may keep its number for seconds, until the system's first process asks after it.
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False

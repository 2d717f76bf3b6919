"""The parent's side of a sweep: its process, its events, and its end without anything left behind."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from plato_core.config import SweepConfig
from plato_core.errors import PlatoError, SweepError, SweepStopped
from plato_core.sweep.channel import EVENTS_FD
from plato_core.sweep.events import Event, Failed, SweepEnded, parse
from plato_core.sweep.folder import CONFIG_NAME, hold, new_sweep_id, own, write_whole
from plato_core.sweep.protocol import Go, Prepare

# A cancelled sweep is gone within so many seconds: trials finish an iteration and write a last checkpoint.
STOP_S = 20.0
LOG_NAME = "sweep.log"
_TICK_S = 0.5


class SweepProcess:
    """A sweep that runs in a process of its own, in its own session.

    Use as a context manager: whatever happens inside, no process of the sweep is left after it.

    Args:
        config: What to run.
        at_once: Whether its process starts now, to load Ray while others get ready; else with `go`.

    Attributes:
        sweep_id: The sweep's name, by its time of start.
        sweep_dir: Its folder, with the log of its process.

    Raises:
        ConfigError: The sweep that is to go on is still being worked on by another process.
    """

    def __init__(self, config: SweepConfig, at_once: bool = True) -> None:
        self.config = config
        self.sweep_id = config.resume or new_sweep_id()
        self.sweep_dir = config.storage_folder / self.sweep_id
        if config.resume is None:
            self.sweep_dir.mkdir(parents=True)
        self._owned = own(self.sweep_dir)
        self._running = hold(self.sweep_dir)  # before it can be told from other folders, so that it is never pruned
        lasting = config.model_copy(update={"resume": None})  # of a sweep that goes on the budget may be larger now
        write_whole(self.sweep_dir / CONFIG_NAME, lasting.to_yaml())
        self._begun = False
        self._child: subprocess.Popen[bytes] | None = None
        self._events: queue.Queue[Event | None] = queue.Queue()
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with: training was let begin, now or in an earlier attempt."""
        return self._begun or self.config.resume is not None

    def go(self, go: Go) -> None:
        """Lets training begin, tracked as `go` says."""
        self._begun = True
        self._child = self._child or self._start()
        self._tell(self._child, go)

    def events(self) -> Iterator[Event | None]:
        """Yields what the sweep tells until it has ended, and None twice a second while it tells nothing.

        Raises:
            PlatoError: The sweep failed; its own error.
            SweepStopped: It was told to stop.
        """
        assert self._child is not None, "nothing is told before `go`"
        ended: SweepEnded | None = None
        while True:
            try:
                event = self._events.get(timeout=_TICK_S)
            except queue.Empty:
                yield None
                continue
            if event is None:
                break
            if isinstance(event, Failed):
                raise self._bug(event.message) if event.error_type == "bug" else event.error()
            yield event
            if isinstance(event, SweepEnded):
                ended = event
                break
        if ended is None:
            code = self._child.wait()
            raise self._bug(f"its process ended with exit code {code}")
        if ended.outcome == "stopped":
            raise SweepStopped(f"sweep {self.sweep_id} was stopped; {ended.message}", signal.SIGTERM)

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
        if not self.begun:
            shutil.rmtree(self.sweep_dir, ignore_errors=True)  # nothing was run, nothing is kept

    def release(self) -> None:
        """Closes it and lets others have the sweep: not in `close`, after which the spool may still be written."""
        self.close()
        self._running.release()
        self._owned.release()

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

    def _end_of(self, child: subprocess.Popen[bytes]) -> PlatoError:
        """Returns why a process ended that nobody had followed yet."""
        code = child.wait()
        with contextlib.suppress(queue.Empty):
            while (event := self._events.get(timeout=_TICK_S)) is not None:
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

    def _bug(self, what: str) -> SweepError:
        return SweepError(f"sweep {self.sweep_id} failed: {what}; its log is {self.sweep_dir / LOG_NAME}")


def kill_session(session: int) -> None:
    """Kills every process of a session: Ray puts its workers into process groups of their own, never elsewhere."""
    for _ in range(3):
        found = [process for process in psutil.process_iter() if _session_of(process.pid) == session]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if not psutil.wait_procs(found, timeout=2.0)[1] and not found:
            return


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


_prepared: SweepProcess | None = None


def prepare(config: SweepConfig) -> SweepProcess:
    """Starts a sweep's process ahead of the flow, so that Ray loads while Prefect starts."""
    global _prepared
    _prepared = SweepProcess(config)
    return _prepared


def is_prepared() -> bool:
    """Says whether a process was started ahead: by a command line, which has checked its config."""
    return _prepared is not None


def adopt(config: SweepConfig) -> SweepProcess:
    """Returns the process that was started ahead for this very config, or a new one.

    That of a sweep that goes on starts with `go` only: its training may be done, and Ray takes seconds to load.
    """
    global _prepared
    prepared, _prepared = _prepared, None
    if prepared is not None and prepared.config == config:
        return prepared
    if prepared is not None:
        prepared.release()
    return SweepProcess(config, at_once=config.resume is None)


def discard() -> None:
    """Ends a process that was started ahead and never adopted."""
    global _prepared
    prepared, _prepared = _prepared, None
    if prepared is not None:
        prepared.release()

"""Knowing a process again: by its id and time of start, and by the mark that all of the stack carries."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

# In the environment of each part and of all that it starts: "<part>:<folder of the stack>".
MARK = "PLATO_STACK_MEMBER"
SUPERVISOR = "supervisor"


class Recorded(BaseModel):
    """A process as it was when it was started; a later one that got its id is another.

    Attributes:
        pid: Its id.
        create_time: When it was started, in seconds since the epoch, as psutil has it.
    """

    model_config = ConfigDict(frozen=True)

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> Recorded:
        """Records a process that runs."""
        return cls(pid=pid, create_time=psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """Returns the process if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if process.create_time() == self.create_time and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class State(BaseModel):
    """What runs of a stack; a file in its folder.

    Attributes:
        supervisor: The process that keeps the parts running.
        ports: The servers' ports, by part.
        parts: The parts' processes by name.
        starts: How often each part was started by this supervisor.
    """

    supervisor: Recorded
    ports: dict[str, int]
    parts: dict[str, Recorded] = {}
    starts: dict[str, int] = {}

    def write(self, folder: Path) -> None:
        """Replaces the file of that folder."""
        written = (path := state_file(folder)).with_suffix(".new")
        written.write_text(self.model_dump_json(indent=1))
        written.replace(path)

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """Returns what the file says, or None if there is none, or only half of one after a loss of power."""
        try:
            return cls.model_validate_json(state_file(folder).read_text())
        except (FileNotFoundError, ValidationError):
            return None

    def running(self) -> set[str]:
        """Returns the names of what still runs of all that is recorded; that of the supervisor is `SUPERVISOR`."""
        recorded = {**self.parts, SUPERVISOR: self.supervisor}
        return {name for name, process in recorded.items() if process.find() is not None}


def state_file(folder: Path) -> Path:
    """Returns the path of the state file of the stack in a folder."""
    return folder / "state.json"


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Holds the folder for one supervisor; yields False if another has it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def mark(part: str, folder: Path) -> dict[str, str]:
    """Returns the variable that marks the processes of a part."""
    return {MARK: f"{part}:{folder}"}


def marked(part: str, folder: Path) -> list[psutil.Process]:
    """Returns all live processes of a part, with those whose parent is gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == f"{part}:{folder}" and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_gone(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Waits for processes to end, whoever their parent is, and returns those that have not."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while True:
        left = [process for process in left if _runs(process)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Ends processes at once."""
    killed = list(processes)
    for process in killed:
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_gone(killed, 5.0)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

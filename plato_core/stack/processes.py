"""Knowing a process again: by its id and time of start, and by the mark that all of the stack carries."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
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
        birth: When it was started, in what no step of the clock changes; told apart by it alone.
        started: When it was recorded, in seconds since the epoch by the clock of that moment.
    """

    model_config = ConfigDict(frozen=True)

    pid: int
    birth: str
    started: float

    @classmethod
    def of(cls, pid: int) -> Recorded:
        """Records a process that runs."""
        return cls(pid=pid, birth=_birth(pid), started=time.time())

    def find(self) -> psutil.Process | None:
        """Returns the process if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            process = psutil.Process(self.pid)
            if _birth(self.pid) == self.birth and process.status() != psutil.STATUS_ZOMBIE:
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

    @property
    def recorded(self) -> dict[str, Recorded]:
        """The parts and the supervisor, whose name is `SUPERVISOR`."""
        return {**self.parts, SUPERVISOR: self.supervisor}

    def running(self) -> set[str]:
        """Returns the names of what still runs of all that is recorded."""
        return {name for name, process in self.recorded.items() if process.find() is not None}


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


def flow_runs(processes: Iterable[psutil.Process]) -> set[str]:
    """Returns the ids of the flow runs that these processes were started for."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found - {""}


def _birth(pid: int) -> str:
    """Not psutil's `create_time`: on Linux that is added to a boot time that moves with the clock."""
    if not sys.platform.startswith("linux"):
        return str(psutil.Process(pid).create_time())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return f"{boot}:{after_name[19]}"  # `starttime` of proc(5), in clock ticks since boot

"""A sweep that is being run for this process, wherever that is: what the flow asks of it."""

from __future__ import annotations

import queue
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from plato_core.config import SweepConfig
from plato_core.errors import SweepError, SweepStopped
from plato_core.sweep.events import Event, Failed, SweepEnded
from plato_core.sweep.folder import CONFIG_NAME, hold, new_sweep_id, own, write_whole
from plato_core.sweep.protocol import Go

TICK_S = 0.5


class SweepExecution(ABC):
    """A sweep, its folder on this machine, and what it tells.

    Use as a context manager: whatever happens inside, nothing of the sweep that this process has begun goes on.

    Args:
        config: What to run.
        sweep_id: The name of a new sweep; by default made of the time.

    Attributes:
        sweep_id: The sweep's name, by its time of start.
        sweep_dir: Its folder on this machine.

    Raises:
        ConfigError: The sweep that is to go on is still being worked on by another process.
    """

    def __init__(self, config: SweepConfig, sweep_id: str | None = None) -> None:
        self.config = config
        self.sweep_id = config.resume or sweep_id or new_sweep_id()
        self.sweep_dir = config.storage_folder / self.sweep_id
        if config.resume is None:
            # Under a given name an earlier life of the same job may have made it, and come no further.
            self.sweep_dir.mkdir(parents=True, exist_ok=sweep_id is not None)
        self._owned = own(self.sweep_dir)
        self._running = hold(self.sweep_dir)  # before it can be told from other folders, so that it is never pruned
        lasting = config.model_copy(update={"resume": None})  # of a sweep that goes on the budget may be larger now
        write_whole(self.sweep_dir / CONFIG_NAME, lasting.to_yaml())
        self._begun = False
        self._events: queue.Queue[Event | None] = queue.Queue()

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

    @abstractmethod
    def go(self, go: Go) -> None:
        """Lets training begin, tracked as `go` says."""

    @abstractmethod
    def stop(self) -> list[Event]:
        """Asks the sweep to end, with a last checkpoint of each trial.

        Returns:
            What the sweep told meanwhile.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends what is left of the sweep; of one that never began the folder goes too."""

    @abstractmethod
    def lineage(self) -> Path | None:
        """Returns the file of its exploits, for the parent run; None if it is there by other ways."""

    @abstractmethod
    def _silent_end(self) -> SweepError:
        """Returns the error of a sweep that ended without a word."""

    @property
    @abstractmethod
    def _log(self) -> str:
        """Where more stands about a bug."""

    def events(self) -> Iterator[Event | None]:
        """Yields what the sweep tells until it has ended, and None twice a second while it tells nothing.

        Raises:
            PlatoError: The sweep failed; its own error.
            SweepStopped: It was told to stop.
        """
        ended: SweepEnded | None = None
        while True:
            try:
                event = self._events.get(timeout=TICK_S)
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
            raise self._silent_end()
        if ended.outcome == "stopped":
            raise SweepStopped(f"sweep {self.sweep_id} was stopped; {ended.message}", signal.SIGTERM)

    def release(self) -> None:
        """Closes it and lets others have the sweep: not in `close`, after which the spool may still be written."""
        self.close()
        self._running.release()
        self._owned.release()

    def _forget_unbegun(self) -> None:
        if not self.begun:
            shutil.rmtree(self.sweep_dir, ignore_errors=True)  # nothing was run, nothing is kept

    def _bug(self, what: str) -> SweepError:
        return SweepError(f"sweep {self.sweep_id} failed: {what}; its log is {self._log}")

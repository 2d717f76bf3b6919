"""A sweep that runs as a job of Azure ML for the flow of this process: submitted, followed by its log, cancelled."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from plato_core.aml.jobnote import JobNote
from plato_core.aml.sweepsettings import settings_of
from plato_core.config import SweepConfig
from plato_core.errors import PlatoError, SweepError
from plato_core.sweep import folder
from plato_core.sweep.events import Event, Failed, Notice, SweepEnded
from plato_core.sweep.execution import TICK_S, SweepExecution
from plato_core.sweep.protocol import Go

if TYPE_CHECKING:
    from plato_core.aml.following import Following

# Whoever stops a sweep waits so long for its job's last words; the job goes on ending by itself.
STOP_S = 25.0
# A job whose code is just being uploaded can be cancelled only when it is there.
_SUBMIT_S = 90.0


class SweepJob(SweepExecution):
    """A sweep as a job, which goes on if this process dies: whoever resumes the sweep follows it again.

    Args:
        config: What to run; its `job_variables` say where.

    Raises:
        ConfigError: See `SweepExecution`; or the sweep was begun in another workspace or storage.
    """

    def __init__(self, config: SweepConfig) -> None:
        settings = settings_of(config)
        workspace = settings.find_workspace()
        if config.resume is not None:
            JobNote.check(config.storage_folder / config.resume, workspace, settings.storage)
        super().__init__(config)
        self._settings, self._workspace = settings, workspace
        self._following: Following | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()  # nothing is to be done about the job any more
        self._stopped = False

    def go(self, go: Go) -> None:
        """Has a job train, tracked as `go` says; or follows the one that this sweep has."""
        from plato_core.aml.client import JobClient
        from plato_core.aml.following import Following

        self._begun = True
        jobs = JobClient(self._workspace)
        self._following = Following(self.config, self.sweep_dir, self._settings, jobs, go, self._take)
        self._thread = threading.Thread(target=self._follow, args=(self._following,), name="job", daemon=True)
        self._thread.start()

    def stop(self) -> list[Event]:
        """Cancels the job, and waits for its last words, for `STOP_S` at most; longer only for a submit on its way.

        Returns:
            What it told meanwhile.
        """
        told: list[Event] = []
        if self._following is None:
            return told
        self._stopped = True
        self._following.cancel()
        began = time.monotonic()
        while not self._over.is_set() or not self._events.empty():
            waited_s = time.monotonic() - began
            if waited_s >= (STOP_S if self._following.cancel_was_heard else _SUBMIT_S):
                break
            with contextlib.suppress(queue.Empty):
                if (event := self._events.get(timeout=TICK_S)) is None:
                    break
                told.append(event)
        if not self._over.is_set():
            name = self._following.name
            told.append(
                Notice(text=f"job {name} is still ending")
                if self._following.cancel_was_heard
                else Notice(text=f"job {name} may still train: Azure ML does not answer; cancel it in Studio")
            )
        return told

    def close(self) -> None:
        """Cancels the job if it still trains, and nobody is to follow it any more."""
        if self._following is not None and self._thread is not None:
            if not self._over.is_set() and not self._stopped:
                self.stop()
            self._following.leave()
            self._thread.join(2 * TICK_S)
        self._forget_unbegun()

    def lineage(self) -> Path | None:
        """None: the job uploads it."""
        return None

    def _follow(self, following: Following) -> None:
        try:
            following.follow()
        except PlatoError as error:
            following.cancel_what_is_left()
            self._take(Failed.of(error))
        except Exception as error:
            following.cancel_what_is_left()
            self._take(Failed(error_type="bug", message=f"{type(error).__name__}: {error}"))
        finally:
            self._over.set()
            self._events.put(None)

    def _take(self, event: Event) -> None:
        if isinstance(event, SweepEnded | Failed):
            self._over.set()
            outcome: folder.Outcome = "failed" if isinstance(event, Failed) else event.outcome
            folder.record_end(self.sweep_dir, outcome)
        self._events.put(event)

    def _silent_end(self) -> SweepError:
        return self._bug("its job ended without a word")

    @property
    def _log(self) -> str:
        return "in Studio" if self._following is None else f"that of job {self._following.name} in Studio"

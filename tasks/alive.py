"""A flow run that lives on, whatever becomes of its worker and whatever the server takes it for.

A worker reads what its runs print. Once it is gone, the console that Prefect logs to ends the process at the next
line (rich's `Console.on_broken_pipe`), hours of training with it. Here it only falls silent; Prefect's UI has the log.

An automation of Prefect's server marks runs Crashed that send no heartbeats (`deployments/automations/lost.yaml`).
A server that was away for long, or a machine that slept, finds its runs overdue before they can send the next one.
Whoever lives says so: such a run is Running again, within `EVERY_S`.

A cancelled run is told so by the worker that started it, and by no other. One that has lost its worker, or that was
started from a shell, looks for itself.
"""

from __future__ import annotations

import contextvars
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.exceptions import PrefectException
from prefect.runtime import deployment, flow_run
from prefect.states import Running
from rich.console import Console

from plato_core.report.prefect_artifacts import brief_client

EVERY_S = 20.0
_JOIN_S = 10.0  # more than the two requests that may be under way take at most


def outlives_its_worker() -> None:
    """Has this process go on when nobody reads any more what it prints."""

    def fall_silent(self: Console) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for standard in (1, 2):  # what else prints, prints there
            os.dup2(nowhere, standard)
        os.close(nowhere)

    Console.on_broken_pipe = fall_silent


@contextmanager
def stays_running() -> Iterator[None]:
    """Has the current flow run, while it is inside, not stay Crashed, nor Cancelling where nobody else ends it."""
    if flow_run.id is None:
        yield
        return
    worker = None if deployment.id is None else os.getppid()
    over = threading.Event()
    # With this context's settings: those say where the server is.
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(_watch, UUID(flow_run.id), worker, over), name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_JOIN_S)  # else it might take back the state in which the run ends


def _watch(run_id: UUID, worker: int | None, over: threading.Event) -> None:
    while not over.wait(EVERY_S):
        try:
            with brief_client() as client:
                state = client.read_flow_run(run_id).state
                if state is None or over.is_set():
                    continue
                if state.is_crashed():
                    message = "Taken for dead, but it lives: nothing had been heard of it for a while."
                    client.set_flow_run_state(run_id, Running(message=message), force=True)
                elif state.is_cancelling() and os.getppid() != worker:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return  # one is enough: it now ends in order
        except (httpx.HTTPError, PrefectException):
            continue  # the next time is soon

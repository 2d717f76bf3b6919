"""The sweep process's two pipes: events out to the parent, and the parent's word in."""

from __future__ import annotations

import os
import signal
import threading

from plato_core.sweep.events import Event, encode
from plato_core.sweep.protocol import Go, Prepare

EVENTS_FD = "PLATO_EVENTS_FD"

_lock = threading.Lock()
_events_fd: int | None = None
_go: Go | None = None
_go_came = threading.Event()


def open_events() -> None:
    """Takes over the pipe that the parent left in the environment.

    Out of the environment, since Ray's processes inherit that but not the pipe: the number would be another file.
    """
    global _events_fd
    descriptor = os.environ.pop(EVENTS_FD, None)
    _events_fd = None if descriptor is None else int(descriptor)


def emit(event: Event) -> None:
    """Tells the parent of an event. Without a parent that listens it does nothing.

    Module state and not an object's, since Tune pickles the schedulers and callbacks that call this.
    """
    global _events_fd
    if _events_fd is None:
        return
    line = encode(event)
    with _lock:
        try:
            while line:
                line = line[os.write(_events_fd, line) :]
        except OSError:
            # The parent is gone; the end of its other pipe says so too, and ends the sweep in order.
            _events_fd = None


def read_prepare() -> Prepare | None:
    """Waits for the parent's first line; None if it closed the pipe instead."""
    line = _read_line()
    return Prepare.model_validate_json(line) if line.strip() else None


def listen() -> None:
    """From now on watches for the parent's second line, and for its end, which acts as SIGTERM does."""
    threading.Thread(target=_listen, name="parent", daemon=True).start()


def _listen() -> None:
    global _go
    line = _read_line()
    if line.strip():
        _go = Go.model_validate_json(line)
        _go_came.set()
        while _read_line():
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _read_line() -> bytes:
    # Not sys.stdin: a thread that waits inside its buffer's lock is a fatal error when the interpreter ends.
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def wait_for_go() -> Go:
    """Waits until the parent's run is open and training may begin."""
    _go_came.wait()
    assert _go is not None
    return _go


def may_go() -> bool:
    """Whether the parent has let the sweep begin."""
    return _go_came.is_set()

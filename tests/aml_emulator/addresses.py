"""Loopback addresses for the nodes of a job: 127.0.0.2, .3, ...; a second job at once has 127.0.1.2, .3, ..."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

_BLOCKS = 200


@contextlib.contextmanager
def node_addresses(count: int) -> Iterator[list[str]]:
    """Holds addresses that no other emulator on this machine uses."""
    for block in range(_BLOCKS):
        path = Path(tempfile.gettempdir()) / f"aml-emulator-nodes-{block}.lock"
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield [f"127.0.{block}.{2 + node}" for node in range(count)]
            return
    raise RuntimeError("no free block of loopback addresses")


def free_port(address: str) -> int:
    """Returns a port of an address that nothing listens on."""
    with socket.socket() as one:
        one.bind((address, 0))
        return one.getsockname()[1]


def listens(address: str, port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1.0)
        return one.connect_ex((address, port)) == 0

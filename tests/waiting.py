"""Waiting for something to come true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# So long a machine with two other things to do may take; only a test that fails waits for all of it.
WAITS_S = 180.0


def wait_until(found: Callable[[], T], what: str = "it is so", timeout_s: float = WAITS_S) -> T:
    """Asks again and again until something true comes back.

    Raises:
        AssertionError: It did not within the time.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s until {what}"
        time.sleep(0.1)
    return result

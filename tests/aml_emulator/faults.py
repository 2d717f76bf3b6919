"""Faults that a test asks for: an error, a delay, a broken connection, half an answer, at any endpoint."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aml_emulator.messages import Request


@dataclass
class Fault:
    """What to do to requests.

    Args:
        match: A regular expression, searched for in "METHOD host/path".
        status: Of the answer.
        times: To how many requests.
        skip: How many to let pass first.
        headers: Of the answer, such as `Retry-After`.
        delay_s: To wait first; with `status` 0 nothing else happens.
        reset: Break the connection and answer nothing.
        silent: Answer nothing for as long as the client waits, and break the connection then.
        truncate: Send half of the true answer, then break the connection.
        handled: Do what the request asks and spoil only the answer: the client cannot know.
        code: Of the error.
        message: Of the error.

    Attributes:
        met: How many requests it has spoilt.
    """

    match: str
    status: int = 503
    times: int = 1
    skip: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    reset: bool = False
    silent: bool = False
    truncate: bool = False
    handled: bool = False
    code: str = "InjectedFault"
    message: str = "a fault that a test asked for"
    met: int = field(default=0, init=False)

    @property
    def answers(self) -> bool:
        """Whether it gives an answer of its own."""
        return not self.reset and not self.silent and not self.truncate and self.status != 0


class Faults:
    """Those that are asked for and not used up."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, wanted: Mapping[str, Any]) -> None:
        with self._lock:
            self._faults.append(Fault(**wanted))

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def left(self) -> list[str]:
        """Those that met no request."""
        with self._lock:
            return [fault.match for fault in self._faults if fault.met == 0]

    def take(self, request: Request) -> Fault | None:
        """Returns the one for a request, and counts it."""
        with self._lock:
            for fault in self._faults:
                if fault.met < fault.times and re.search(fault.match, request.line):
                    if fault.skip > 0:
                        fault.skip -= 1
                        return None
                    fault.met += 1
                    return fault
        return None

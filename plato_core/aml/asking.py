"""Asking Azure from an event loop: in threads of their own, and going on where nobody answers.

That a service is away is told in one line, and in another that it is back; in between it is asked less and less often.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync

from plato_core.errors import AmlError
from plato_core.report.text import plain

T = TypeVar("T")
MOST_S = 60.0  # between two polls, while Azure ML or Prefect does not answer
# So many questions at one time. They have threads of their own: while Azure hangs, each of many jobs' holds one, and
# Prefect's worker needs anyio's 40 for itself.
_THREADS = 32
_AGAIN_S = 600.0  # what comes and goes is told so seldom
_threads: RunVar[anyio.CapacityLimiter] = RunVar("plato_azure_threads")
# What differs between two errors that say the same: addresses of objects, ids, ports, times.
_NUMBERS = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|\d+", re.IGNORECASE)


async def in_thread(question: Callable[..., T], *arguments: object) -> T:
    """Return what a call that blocks returns; whoever waits for it can be cancelled."""
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _threads.set(limiter)
    return await run_sync(lambda: question(*arguments), abandon_on_cancel=True, limiter=limiter)


class Once:
    """Which lines were said already, the last of them; numbers in them do not count.

    Args:
        most: So many are kept.
    """

    def __init__(self, most: int = 50) -> None:
        self._said: deque[str] = deque(maxlen=most)

    def first(self, text: str) -> bool:
        """Say whether a line is to be said: it was not said before."""
        kind = _NUMBERS.sub("#", text)
        if kind in self._said:
            return False
        self._said.append(kind)
        return True


class Outages:
    """Which questions have no answer, each told when that begins and when it is over.

    An outage whose beginning was not told, as one like it was told a moment ago, is told once it has lasted.
    """

    def __init__(self) -> None:
        self._away: dict[Hashable, Once] = {}  # what was told of each outage
        self._told: dict[str, float] = {}  # lately

    def begins(self, question: Hashable, text: str) -> bool:
        """Note that a question had no answer.

        Args:
            question: What was asked.
            text: What came in place of an answer.

        Returns:
            Whether it is to be told.
        """
        now, kind = time.monotonic(), _NUMBERS.sub("#", text)
        self._told = {told: when for told, when in self._told.items() if now - when < _AGAIN_S}
        if kind in self._told or not self._away.setdefault(question, Once()).first(kind):
            return False
        self._told[kind] = now
        return True

    def ends(self, question: Hashable) -> bool:
        """Note that a question was answered, and return whether that is to be told."""
        return self._away.pop(question, None) is not None


class Questions:
    """The questions about one job: each has its answer, or none, which says nothing about the job.

    Args:
        name: Of the job.
        logger: Told when a service is away, and when it is back.
    """

    def __init__(self, name: str, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._name, self._logger = name, logger
        self._misses = 0
        self._outages = Outages()

    async def ask(self, question: Callable[..., T], *arguments: object) -> tuple[T] | None:
        """Return what Azure ML answers, in a tuple; None if it does not."""
        try:
            answer = await in_thread(question, *arguments)
        except Exception as error:
            self.missed("Azure ML", error, question)
            return None
        self._misses = 0
        self.answered("Azure ML", question)
        return (answer,)

    def missed(self, who: str, error: Exception, question: Hashable = None) -> None:
        """Note that somebody did not answer; it is said once, not with every poll.

        Args:
            who: Azure ML, or the Prefect API.
            error: What came in place of an answer.
            question: What was asked, where it is not always the same.
        """
        self._misses += 1
        text = str(error) if isinstance(error, AmlError) else f"{type(error).__name__}: {error}"
        if self._outages.begins(question, text):
            self._logger.warning("%s could not be asked about job %s; trying again. %s", who, self._name, plain(text))

    def answered(self, who: str, question: Hashable = None) -> None:
        """Note that somebody answered; see `missed`. It is said where it was said that there was no answer."""
        if self._outages.ends(question):
            self._logger.info("%s answers again about job %s", who, self._name)

    def pause_s(self, poll_interval_s: float) -> float:
        """Return how long to wait until the next poll, in seconds."""
        if not self._misses:
            return poll_interval_s
        return max(poll_interval_s, min(MOST_S, poll_interval_s * 2 ** min(self._misses, 8)))

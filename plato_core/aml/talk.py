"""Asking Azure ML from a thread that can be woken, and saying what comes of it as a phase of the sweep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from plato_core.errors import AmlError, AmlUnavailable
from plato_core.report.text import plain
from plato_core.sweep.events import Event, Phase

T = TypeVar("T")
_WAITS_S = (5.0, 10.0, 20.0, 40.0, 60.0)  # between tries while Azure ML does not answer; the last again and again
_WITHIN_S = 600.0


class Talk:
    """One sweep's talk with Azure ML.

    Args:
        poll_interval_s: Between two questions about a job, in seconds, while it answers.
        take: Takes the phases.

    Attributes:
        misses: How many questions in a row had no answer.
    """

    def __init__(self, poll_interval_s: float, take: Callable[[Event], None]) -> None:
        self._poll_interval_s, self._take = poll_interval_s, take
        self._wake = threading.Event()
        self._told = ""
        self._ending = False
        self.misses = 0

    def say(self, text: str, more: str = "") -> None:
        """Tells a phase, unless it was the last one told.

        Args:
            text: The phase.
            more: What is shown after it, and makes it no other.
        """
        if text != self._told:
            self._told = text
            self._take(Phase(text=text + more))

    def ask(self, question: Callable[[], T]) -> T | None:
        """Returns the answer; None and a miss if there is none, which says nothing of what was asked."""
        try:
            answer = question()
        except AmlError as error:
            self.misses += 1
            self.say(f"Azure ML could not be asked; trying again. {plain(str(error))}")
            return None
        self.misses = 0
        return answer

    def insist(self, question: Callable[[], T]) -> T:
        """Returns the answer, for some minutes also if there is none at once.

        Raises:
            PlatoError: Azure ML refuses; or it did not answer for 10 min, or until `hurry`.
        """
        deadline, tries = time.monotonic() + _WITHIN_S, 0
        while True:
            try:
                return question()
            except AmlUnavailable as error:
                wait_s = _WAITS_S[min(tries, len(_WAITS_S) - 1)]
                if self._ending or time.monotonic() + wait_s > deadline:
                    raise
                tries += 1
                self.say(f"{plain(str(error))}; trying again in {wait_s:.0f} s")
                self._wake.wait(wait_s)

    def pause(self) -> None:
        """Waits until the next question is due, longer where there was no answer; or until it is woken."""
        longer_s = _WAITS_S[min(self.misses, len(_WAITS_S)) - 1] if self.misses else 0.0
        self._wake.wait(max(self._poll_interval_s, longer_s))
        self._wake.clear()

    def hurry(self) -> None:
        """Ends a pause, and does not insist any more; from any thread."""
        self._ending = True
        self._wake.set()

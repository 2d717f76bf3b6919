"""Asking Azure ML from a thread that can be woken, and telling what comes of it as notices of the sweep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from plato_core.aml.asking import Outages
from plato_core.errors import AmlError, AmlUnavailable
from plato_core.report.text import plain
from plato_core.sweep.events import Event, Notice

T = TypeVar("T")
_WAITS_S = (5.0, 10.0, 20.0, 40.0, 60.0)  # between tries while Azure ML does not answer; the last again and again
_WITHIN_S = 600.0
_HURRIED_S = 2.0  # the longest wait once the sweep is to stop


class Talk:
    """One sweep's talk with Azure ML.

    Args:
        poll_interval_s: Between two questions about a job, in seconds, while it answers.
        take: Takes the notices.

    Attributes:
        misses: How many questions in a row had no answer.
    """

    def __init__(self, poll_interval_s: float, take: Callable[[Event], None]) -> None:
        self._poll_interval_s, self._take = poll_interval_s, take
        self._wake = threading.Event()
        self._told = ""
        self._outages = Outages()
        self._hurried = False
        self.misses = 0

    def say(self, text: str, more: str = "") -> None:
        """Tells a line, unless it was the last one told.

        Args:
            text: The line.
            more: What is shown after it, and makes it no other.
        """
        if text != self._told:
            self._told = text
            self._take(Notice(text=text + more))

    def ask(self, question: Callable[..., T], *arguments: object) -> T | None:
        """Returns the answer; None and a miss if there is none, which says nothing of what was asked.

        An outage is told once, with its end.
        """
        try:
            answer = question(*arguments)
        except Exception as error:  # also what a proxy answers in Azure's place, which the SDK cannot read
            self.misses += 1
            text = plain(str(error)) if isinstance(error, AmlError) else f"{type(error).__name__}: {plain(str(error))}"
            if self._outages.begins(question, text):
                self._take(Notice(text=f"Azure ML could not be asked; trying again. {text}"))
            return None
        self.misses = 0
        if self._outages.ends(question):
            self._take(Notice(text="Azure ML answers again"))
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
                if self._hurried or time.monotonic() + wait_s > deadline:
                    raise
                tries += 1
                self.say(f"{plain(str(error))}; trying again in {wait_s:.0f} s")
                self._wake.wait(wait_s)

    def pause(self, at_least_s: float = 0.0) -> None:
        """Waits until the next question is due, longer where there was no answer; or until it is woken.

        Args:
            at_least_s: What is asked about changes that slowly.
        """
        longer_s = _WAITS_S[min(self.misses, len(_WAITS_S)) - 1] if self.misses else 0.0
        wait_s = max(self._poll_interval_s, longer_s, at_least_s)
        self._wake.wait(min(wait_s, _HURRIED_S) if self._hurried else wait_s)
        self._wake.clear()

    def hurry(self) -> None:
        """Ends a pause, has later ones be short, and does not insist any more; from any thread."""
        self._hurried = True
        self._wake.set()

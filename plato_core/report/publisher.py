"""Tells a server of the sweep's progress from a thread of its own, so that no slow or absent one holds anything up."""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from plato_core.report.text import last_line

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]
Session = Callable[[], AbstractContextManager[Callable[[], None]]]
# Between two tries of the last sending: a server may restart just as a sweep ends.
_RETRY_S = 1.0


class Publisher:
    """Sends the latest state whenever there is news, every few seconds at most.

    What is sent is whatever `send` finds at that moment: news that comes while it sends or waits is one more
    sending, however much of it there is. The first failure is one warning, and then all is quiet until it works again.
    The last state is tried again each second until it gets through or nobody waits for it any more.

    The thread is a daemon, and has the context variables (Prefect's runs and settings) of whoever makes this.

    Args:
        name: What people call the place: `the Prefect UI`.
        session: Opened in the thread for its whole life; gives the `send` that is called again and again.
        logger: For the warnings.
        every_s: Least seconds between two sendings.
    """

    def __init__(self, name: str, session: Session, logger: Logger, every_s: float = 0.0) -> None:
        self._name = name
        self._session = session
        self._logger = logger
        self._every_s = every_s
        self._news = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._failing = False
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=f"publisher: {name}", daemon=True
        )
        self._thread.start()

    def notice(self) -> None:
        """Say that there is news. Returns at once."""
        self._news.set()

    def finish(self) -> None:
        """Have the last state sent without further delay, and then no more. Returns at once."""
        self._closing.set()
        self._news.set()

    def wait(self, patience_s: float) -> bool:
        """Wait for the last state to get through after `finish`; what has not begun by then is not sent any more.

        Args:
            patience_s: Seconds.

        Returns:
            Whether the last state got through.
        """
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._abandoned.set()
            self._warn("no answer yet to its last update")
        return not self._failing

    def _run(self) -> None:
        try:
            with self._session() as send:
                while True:
                    self._news.wait()
                    self._news.clear()
                    last = self._closing.is_set()
                    if self._abandoned.is_set():
                        return
                    self._try(send)
                    if not last:
                        self._closing.wait(self._every_s)
                    elif not self._failing:
                        return
                    else:
                        self._abandoned.wait(_RETRY_S)
        except Exception as error:  # the session's own, as of a certificate file that is not there
            self._warn(_why(error))

    def _try(self, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:
            self._warn(_why(error))
            self._news.set()  # what was not sent is still news
        else:
            if self._failing:
                self._failing = False
                self._logger.info(f"{self._name} is up to date again")

    def _warn(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            self._logger.warning(f"{self._name} is not up to date, the sweep goes on: {why}")


def finish(publishers: Sequence[Publisher], patience_s: float) -> None:
    """Have each send the last state, and wait for all of them together.

    Args:
        publishers: Not used any more after this.
        patience_s: Seconds.
    """
    for publisher in publishers:
        publisher.finish()
    deadline = time.monotonic() + patience_s
    for publisher in publishers:
        publisher.wait(max(0.0, deadline - time.monotonic()))


def _why(error: Exception) -> str:
    # Of the text of an HTTP error the first line has the status; the others are advice for programmers.
    lines = str(error).strip().splitlines()
    return last_line(lines[0]) if lines else type(error).__name__

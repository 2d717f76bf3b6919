import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from plato_core.report import publisher as publishing
from plato_core.report.publisher import Publisher, finish

LOGGER = logging.getLogger("test_publisher")


class Place:
    """Somewhere to publish: counts what was sent, and fails or holds a sending up as it is told."""

    def __init__(self) -> None:
        self.state = 0
        self.sent: list[int] = []
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Semaphore(0)

    @contextmanager
    def session(self) -> Iterator[Callable[[], None]]:
        yield self.send

    def send(self) -> None:
        state, error = self.state, self.error
        self.reached.release()
        assert self.open.wait(20)
        if error is not None:
            raise error
        self.sent.append(state)

    def await_sending(self) -> None:
        assert self.reached.acquire(timeout=60)


@pytest.fixture
def place() -> Place:
    return Place()


def test_news_during_a_sending_is_one_more_sending_of_the_latest(place: Place) -> None:
    publisher = Publisher("the place", place.session, LOGGER)
    place.open.clear()
    publisher.notice()
    place.await_sending()
    for place.state in range(1, 100):  # the state itself goes on
        publisher.notice()
    place.open.set()
    place.await_sending()
    finish([publisher], 20)
    assert place.sent[:2] == [0, 99]
    assert place.sent[2:] in ([], [99])


def test_however_long_the_pause_the_last_state_is_sent_at_the_end(place: Place) -> None:
    publisher = Publisher("the place", place.session, LOGGER, every_s=3600)
    publisher.notice()
    place.await_sending()
    place.state = 7
    publisher.notice()
    finish([publisher], 20)
    assert place.sent == [0, 7]


def test_one_warning_then_quiet_until_it_works_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    place.error = ConnectionError("http://bob:hunter2@host refused\nadvice")
    publisher = Publisher("the place", place.session, LOGGER)
    for _ in range(3):  # without further news: what was not sent is tried again
        publisher.notice()
        place.await_sending()
    place.error = None
    place.await_sending()
    finish([publisher], 20)
    assert caplog.messages == [
        "the place is not up to date, the sweep goes on: http://***@host refused",
        "the place is up to date again",
    ]


def test_one_that_hangs_is_left_alone_and_gets_nothing_afterwards(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher("the place", place.session, LOGGER)
    place.open.clear()
    publisher.notice()
    place.await_sending()
    place.state = 1
    publisher.notice()
    finish([publisher], 0.05)
    assert caplog.messages == ["the place is not up to date, the sweep goes on: no answer yet to its last update"]
    place.open.set()
    publisher._thread.join(20)
    assert place.sent == [0]


def test_a_place_that_comes_back_while_somebody_waits_for_it_has_the_last_state(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_RETRY_S", 0.01)
    place.error = ConnectionError("it starts again")
    publisher = Publisher("the place", place.session, LOGGER, every_s=3600)
    publisher.finish()
    for _ in range(3):
        place.await_sending()
    place.state, place.error = 7, None
    assert publisher.wait(20)
    assert place.sent == [7]


def test_a_place_that_stays_away_is_tried_no_more_once_nobody_waits(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.error = ConnectionError("refused")
    publisher = Publisher("the place", place.session, LOGGER)
    publisher.finish()
    place.await_sending()
    assert not publisher.wait(0.05)
    place.error = None
    publisher._thread.join(20)
    assert not publisher._thread.is_alive()
    assert place.sent == []
    assert caplog.messages == ["the place is not up to date, the sweep goes on: refused"]


def test_a_session_that_cannot_be_opened_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    @contextmanager
    def session() -> Iterator[Callable[[], None]]:
        raise FileNotFoundError("no certificate")
        yield

    publisher = Publisher("the place", session, LOGGER)
    publisher.finish()
    assert not publisher.wait(20)
    assert caplog.messages == ["the place is not up to date, the sweep goes on: no certificate"]


def test_the_thread_sees_the_makers_context(place: Place) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    @contextmanager
    def session() -> Iterator[Callable[[], None]]:
        yield lambda: seen.append(variable.get())

    variable.set("the maker's")
    finish([Publisher("the place", session, LOGGER)], 20)
    assert seen == ["the maker's"]

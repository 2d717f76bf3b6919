"""How long a sweep waits at its beginning and its end for a tracking store that is away or throttles.

At its end hours of training are done, and only the store is missing; at its beginning a job may have been queued for
hours. (In between nobody waits: there is the spool.) A store on another machine comes back by itself, so it is waited
for; one on this machine is down because of somebody here, who is told at once. A store that refuses is never waited
for.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar
from urllib.error import URLError
from urllib.parse import urlsplit

from plato_core.aml.credentials import sign_in_error
from plato_core.errors import AmlUnavailable, StoreAway
from plato_core.hosts import is_loopback
from plato_core.report.text import duration
from plato_core.tracking.artifacts import is_transient
from plato_core.tracking.azure import is_azure

T = TypeVar("T")
# Without progress. In a job its nodes are paid meanwhile, and a run that fails costs more.
PATIENCE_S = 900.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 30.0
# Of a download MLflow tells what became of each file by the text alone.
_REFUSED_FILE = re.compile(r"\b4(?!08|29)\d\d Client Error|ErrorCode:(Auth|Blob|Container|Invalid)")
_SIGN_IN_ERRORS = {"ClientAuthenticationError", "CredentialUnavailableError"}


def patience_s(uri: str) -> float:
    """Return for how long a store is waited for, in seconds; 0 for one on this machine.

    Args:
        uri: Its tracking URI.
    """
    if is_azure(uri):
        return PATIENCE_S
    parts = urlsplit(uri)
    return PATIENCE_S if parts.scheme in ("http", "https") and not is_loopback(parts.hostname or "") else 0.0


def may_pass(error: BaseException) -> bool:
    """Say whether the store is away or busy (no connection, HTTP 408, 429, 5xx), and has not refused.

    Args:
        error: What a request came to, as it was or as the cause of one of ours.
    """
    link: BaseException | None = error
    while link is not None:
        if _REFUSED_FILE.search(str(link)):
            return False
        if isinstance(link, AmlUnavailable | URLError):
            return True
        if isinstance(link, Exception) and (is_transient(link) or _sign_in_is_away(link)):
            return True
        link = link.__cause__
    return False


def patiently(
    ask: Callable[[], T],
    limit_s: float,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return what the store answers, asking again for a while where it is away or throttles.

    Args:
        ask: Asks it; may be called any number of times.
        limit_s: For how long, from `patience_s`; with 0 it is asked once.
        say: Told in a line when the wait begins, and in another when it is over.
        clock: In seconds.
        sleep: Waits.

    Raises:
        StoreAway: It did not come back in time.
        Exception: What else `ask` raised, as it was.
    """
    began, waiting, pause_s = clock(), False, _FIRST_PAUSE_S
    while True:
        try:
            answer = ask()
        except Exception as error:
            if limit_s <= 0 or not may_pass(error):
                raise
            if clock() - began >= limit_s:
                raise StoreAway(f"{error}; it was waited for, {duration(limit_s)}") from error
            if not waiting:
                say(f"waiting for the tracking store, up to {duration(limit_s)}: {error}")
            waiting = True
            sleep(max(0.0, min(pause_s, limit_s - (clock() - began))))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            if waiting:
                say(f"the tracking store answers again, after {duration(clock() - began)}")
            return answer


def within(limit_s: float, ask: Callable[[], T]) -> T:
    """Return what the store answers if it does so in time, for whoever cannot wait as long as its client would.

    Args:
        limit_s: How long it is waited for. What is under way then goes on in a thread, which no process waits for.
        ask: Asks it.

    Raises:
        StoreAway: There was no answer in time.
        Exception: What `ask` raised, as it was.
    """
    answer: Future[T] = Future()

    def ask_it() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask_it, name="plato-last-request", daemon=True).start()
    try:
        return answer.result(limit_s)
    except TimeoutError:
        if answer.done():  # an error of `ask` itself
            raise
        raise StoreAway(f"the tracking store did not answer within {duration(limit_s)}") from None


def _sign_in_is_away(error: Exception) -> bool:
    """Say whether Azure's sign-in was not reached, which azure-identity tells by the same error as a refusal."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if _SIGN_IN_ERRORS.isdisjoint(kinds) or getattr(error, "status_code", None) is not None:
        return False
    return isinstance(sign_in_error(str(error)), AmlUnavailable)

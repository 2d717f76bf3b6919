"""How long a store is waited for at a sweep's end. No store: each answers as told, on a clock of the test's own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from prefect.states import Failed

from plato_core.errors import AmlUnavailable, CheckpointError, SelectionError, StoreAway, TrackingError
from plato_core.tracking import patience, writer
from plato_core.tracking.client import tracking_errors
from plato_core.tracking.patience import PATIENCE_S, may_pass, patience_s, patiently, within
from plato_core.tracking.sender import outcome
from plato_core.tracking.spool import Spool, Target
from plato_core.tracking.summary import DrainSummary
from plato_core.tracking.writer import Writer
from tasks.retries import store_may_come_back

THROTTLED = RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"})
REFUSED = MlflowException("not yours", error_code=PERMISSION_DENIED)


def translated(error: Exception) -> TrackingError:
    """As a task sees it."""
    with pytest.raises(TrackingError) as raised, tracking_errors("azureml://w"):
        raise error
    return raised.value


@dataclass
class Store:
    """Answers after a while, on its own clock."""

    away_s: float
    error: Exception = field(default_factory=lambda: translated(THROTTLED))
    now: float = 100.0
    asked: int = 0
    said: list[str] = field(default_factory=list)

    def ask(self) -> str:
        self.asked += 1
        self.now += 1.0
        if self.now - 100.0 < self.away_s:
            raise self.error
        return "answer"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait_for(self, limit_s: float = PATIENCE_S) -> str:
        return patiently(self.ask, limit_s, self.said.append, clock=lambda: self.now, sleep=self.sleep)


def test_a_store_that_answers_is_asked_once_and_nothing_is_said() -> None:
    store = Store(0.0)
    assert store.wait_for() == "answer"
    assert (store.asked, store.said) == (1, [])


def test_a_store_that_throttles_for_minutes_is_two_lines() -> None:
    store = Store(600.0)
    assert store.wait_for() == "answer"
    begun, over = store.said
    assert begun.startswith("waiting for the tracking store, up to 15 min: tracking store azureml://w: ")
    assert over.startswith("the tracking store answers again, after 10 min")
    assert 600.0 / 35.0 < store.asked < 30  # seldom, and at least every half minute


def test_one_that_stays_away_is_given_up_in_time_and_not_tried_again() -> None:
    store = Store(10_000.0)
    with pytest.raises(StoreAway, match="slow down; it was waited for, 15 min") as raised:
        store.wait_for()
    assert PATIENCE_S <= store.now - 100.0 <= PATIENCE_S + 5.0
    assert len(store.said) == 1
    assert not store_may_come_back(None, None, Failed(data=raised.value))
    assert store_may_come_back(None, None, Failed(data=store.error))


@pytest.mark.parametrize("error", [translated(REFUSED), SelectionError("none"), CheckpointError("damaged"), KeyError()])
def test_one_that_refuses_is_not_waited_for(error: Exception) -> None:
    store = Store(10.0, error)
    with pytest.raises(type(error)):
        store.wait_for()
    assert (store.asked, store.said) == (1, [])


def test_one_on_this_machine_is_not_waited_for() -> None:
    store = Store(10.0)
    with pytest.raises(TrackingError):
        store.wait_for(patience_s("http://127.0.0.1:5000"))
    assert store.asked == 1


def test_ctrl_c_ends_the_wait() -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    store = Store(600.0)
    with pytest.raises(KeyboardInterrupt):
        patiently(store.ask, PATIENCE_S, store.said.append, sleep=interrupted)
    assert store.asked == 1


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("azureml://eastus.api.azureml.ms/mlflow/v2.0/subscriptions/s", True),
        ("https://ann:pw@mlflow.example.com/x", True),
        ("http://10.0.0.4:5000", True),
        ("http://localhost:5000", False),
        ("http://127.0.0.1:5000", False),
        ("http://[::1]:5000", False),
        ("sqlite:///mlflow.db", False),
    ],
)
def test_who_is_waited_for(uri: str, remote: bool) -> None:
    assert patience_s(uri) == (PATIENCE_S if remote else 0.0)


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *((http_error(status), True) for status in (408, 429, 500, 502, 503)),
        *((http_error(status), False) for status in (400, 401, 403, 404, 409)),
        (ConnectionResetError(), True),
        (requests.ReadTimeout(), True),
        (AmlUnavailable("Azure does not answer"), True),
        (ClientAuthenticationError("EnvironmentCredential: the connection was reset"), True),
        (ClientAuthenticationError("AADSTS7000215: Invalid client secret provided"), False),
        (TrackingError("holds a quote"), False),
        (MlflowException("##### File a #####\n503 Server Error: Service Unavailable for url: u"), True),
        (MlflowException("##### File a #####\n403 Client Error: Forbidden for url: u"), False),
        (MlflowException("##### File a #####\nNot authorized.\nErrorCode:AuthorizationFailure"), False),
        (MlflowException("##### File a #####\nThe server is busy.\nErrorCode:ServerBusy"), True),
    ],
)
def test_what_may_pass(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes
    ours = TrackingError("the store")
    ours.__cause__ = error
    assert may_pass(ours) is passes


# ---- the last of the results


REMOTE, HERE = "https://mlflow.example.com", "http://127.0.0.1:5000"
TIMEOUT_S = 0.4


class AwayFor:
    """Stands for the requests of a writer: the store takes none for a while."""

    max_metrics, round_trip_s = 1000, 0.0

    def __init__(self, seconds: float, error: Exception) -> None:
        self._until, self._error = time.monotonic() + seconds, error

    def find_run(self, key: str) -> None:
        return None

    def create_run(self, op: Any) -> str:
        with outcome():
            if time.monotonic() < self._until + (1.0 if op["key"] == "later" else 0.0):
                raise self._error
        return "run"


@dataclass
class Drain:
    """The end of a sweep, with one operation of each trial left; that of `later` takes a second more."""

    folder: Path
    uri: str
    away_s: float
    error: Exception = THROTTLED
    trials: tuple[str, ...] = ("t",)
    told: list[DrainSummary] = field(default_factory=list)
    took_s: float = 0.0

    def run(self, cancelled_after_s: float = 60.0) -> DrainSummary:
        target = Target(
            tracking_uri=self.uri, experiment_id="1", parent_run_id="p", sweep_id="s", keep_checkpoints=1, mode="max"
        )
        one = Writer(Spool.create(self.folder / "spool", target))
        one._sender = AwayFor(self.away_s, self.error)  # type: ignore[assignment]
        for key in self.trials:
            one.append({"op": "create", "key": key, "name": key, "time": 0, "tags": {}})
        one.start()
        began = time.monotonic()
        limit_s = lambda: 60.0 if time.monotonic() - began < cancelled_after_s else 0.0  # noqa: E731
        drained = one.drain(TIMEOUT_S, self.told.append, limit_s, patient=True)
        self.took_s = time.monotonic() - began
        return drained


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes are seconds."""
    monkeypatch.setattr(patience, "PATIENCE_S", 20.0)
    monkeypatch.setattr(writer, "TOLD_AFTER_S", 0.1)


@pytest.mark.usefixtures("soon")
def test_the_last_results_wait_for_a_store_elsewhere_and_it_is_told_once(tmp_path: Path) -> None:
    drain = Drain(tmp_path, REMOTE, away_s=5 * TIMEOUT_S)
    assert drain.run().complete
    waits = [summary for summary in drain.told if summary.last_error is not None and summary.pending_ops]
    assert len(waits) == 1
    assert waits[0].gives_up_s == 20.0
    assert drain.told[-1].last_error is None


def test_a_store_that_takes_one_after_the_other_is_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "TOLD_AFTER_S", 1.5)
    drain = Drain(tmp_path, REMOTE, away_s=2.5, trials=("t", "u", "later"))
    assert drain.run().complete
    away = [summary.last_error is not None for summary in drain.told]
    assert away[away.index(True) :].count(True) == 1
    assert not away[-1]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("uri", "error"), [(HERE, THROTTLED), (REMOTE, REFUSED)])
def test_the_last_results_do_not_wait_for_one_here_or_one_that_refuses(
    tmp_path: Path, uri: str, error: Exception
) -> None:
    drain = Drain(tmp_path, uri, 60.0, error)
    drained = drain.run()
    assert drained.pending_ops == 1
    assert drain.took_s < 10.0


@pytest.mark.usefixtures("soon")
def test_a_cancelled_sweep_waits_no_longer(tmp_path: Path) -> None:
    drain = Drain(tmp_path, REMOTE, away_s=60.0)
    assert drain.run(cancelled_after_s=3 * TIMEOUT_S).pending_ops == 1
    assert 3 * TIMEOUT_S <= drain.took_s < 10.0


def test_who_cannot_wait_is_not_kept_by_a_request_that_hangs() -> None:
    answers = threading.Event()
    try:
        with pytest.raises(StoreAway, match="did not answer within 0"):
            within(0.05, answers.wait)
    finally:
        answers.set()


def test_an_answer_or_an_error_in_time_is_passed_on() -> None:
    assert within(60.0, lambda: 3) == 3
    for error in (REFUSED, TimeoutError("the store's own")):
        with pytest.raises(type(error)) as raised:
            within(60.0, Store(100.0, error).ask)
        assert raised.value is error

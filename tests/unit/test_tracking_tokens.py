"""A tracking request whose token is refused is sent once more with a new one; then the error stands."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from mlflow.exceptions import MlflowException, RestException

from plato_core.aml.credentials import RenewableCredential
from plato_core.tracking.azure import _Kept

FAR = 10**11
UNAUTHENTICATED = RestException({"error_code": "UNAUTHENTICATED", "message": "The access token is invalid."})
IN_AZURES_WORDS = RestException({"error": {"code": "InvalidAuthenticationToken", "message": "expired"}})


def of_azure_core(status: int) -> HttpResponseError:
    error = ClientAuthenticationError() if status == 401 else HttpResponseError()
    error.status_code = status
    return error


class Service:
    """Gives tokens that last, and takes those alone that it has not taken back."""

    def __init__(self, refusal: Exception) -> None:
        self.refusal, self.given, self.good, self.asked = refusal, 0, 1, 0
        self._lock = threading.Lock()
        self.kept = _Kept(RenewableCredential(lambda: self))

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.given += 1
        return AccessToken(str(self.given), FAR)

    def request(self, what: str) -> str:
        token = int(self.kept.get_token("scope").token)
        with self._lock:
            self.asked += 1
        if token < self.good:
            raise self.refusal
        return what


@pytest.mark.parametrize("refusal", [UNAUTHENTICATED, IN_AZURES_WORDS, of_azure_core(401)])
def test_a_token_that_is_taken_back_is_asked_for_anew(refusal: Exception) -> None:
    service = Service(refusal)
    request = service.kept.renewing(service.request)
    assert [request("a"), request("b")] == ["a", "b"]
    assert service.given == 1
    service.good = 2
    assert [request("c"), request("d")] == ["c", "d"]
    assert (service.given, service.asked) == (2, 5)


def test_a_refusal_that_stays_is_asked_once_more_only() -> None:
    service = Service(UNAUTHENTICATED)
    service.good = 100
    with pytest.raises(RestException, match="UNAUTHENTICATED"):
        service.kept.renewing(service.request)("a")
    assert (service.given, service.asked) == (2, 2)


@pytest.mark.parametrize("error", [of_azure_core(403), MlflowException("away"), ConnectionResetError()])
def test_another_error_is_no_reason_to_sign_in_anew(error: Exception) -> None:
    service = Service(error)
    service.good = 100
    with pytest.raises(type(error)):
        service.kept.renewing(service.request)("a")
    assert (service.given, service.asked) == (1, 1)


def test_threads_that_are_refused_together_sign_in_once() -> None:
    service = Service(UNAUTHENTICATED)
    together = threading.Barrier(4)

    def request(what: str) -> str:
        if service.good == 1:  # each has its token by now
            service.kept.get_token("scope")
            together.wait(10.0)
            service.good = 2
            raise service.refusal
        return service.request(what)

    answers: list[str] = []
    asking = service.kept.renewing(request)
    threads = [threading.Thread(target=lambda: answers.append(asking("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert answers == ["a"] * 4
    assert service.given == 2

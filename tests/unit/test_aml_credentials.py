"""A credential that is refused is made anew: somebody may have signed in again since."""

from __future__ import annotations

from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from plato_core.aml import credentials


class Secret:
    """Signs in with the secret that was in force when it was made."""

    in_force = "first"
    made = 0

    def __init__(self) -> None:
        self.secret = Secret.in_force
        Secret.made += 1

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        if self.secret != Secret.in_force:
            raise ClientAuthenticationError(f"the {self.secret} secret is refused")
        return AccessToken(self.secret, 0)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Secret, "in_force", "first")
    monkeypatch.setattr(Secret, "made", 0)
    monkeypatch.setattr(credentials, "_credential", Secret)


def test_a_rotated_secret_is_taken_without_a_new_client() -> None:
    credential = credentials.credential()
    assert credential.get_token("scope").token == "first"
    Secret.in_force = "second"
    assert [credential.get_token("scope").token for _ in range(3)] == ["second"] * 3
    assert Secret.made == 2


def test_one_that_never_worked_is_refused_at_once() -> None:
    credential = credentials.credential()
    Secret.in_force = "second"
    with pytest.raises(ClientAuthenticationError):
        credential.get_token("scope")
    assert Secret.made == 1


def test_a_refusal_that_stays_is_an_error_and_does_not_end_it() -> None:
    credential = credentials.credential()
    credential.get_token("scope")
    Secret.in_force = "second"
    Secret.__init__, kept = lambda self: setattr(self, "secret", "wrong"), Secret.__init__  # type: ignore[method-assign]
    try:
        with pytest.raises(ClientAuthenticationError):
            credential.get_token("scope")
    finally:
        Secret.__init__ = kept  # type: ignore[method-assign]
    assert credential.get_token("scope").token == "second"

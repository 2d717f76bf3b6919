"""Where a host is, as far as its name or address tells."""

from __future__ import annotations

import pytest

from plato_core.hosts import is_loopback, is_private


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "localhost", "my.localhost", ""])
def test_a_loopback_address_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    ("host", "private"),
    [("10.0.0.4", True), ("192.168.1.2", True), ("prefect", True), ("prefect.internal", True), ("8.8.8.8", False),
     ("api.prefect.cloud", False)],
)  # fmt: skip
def test_an_address_that_only_its_own_network_knows_is_known(host: str, private: bool) -> None:
    assert is_private(host) is private
    assert not is_loopback(host)

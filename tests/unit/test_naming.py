"""Names and tags of flow runs, when Prefect's server has no time for them."""

import socket
from collections.abc import Iterator
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from plato_core.config import SweepConfig
from plato_core.report import prefect_artifacts
from tasks import naming


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server that takes every request and never answers; the current run is one of its runs."""
    monkeypatch.setattr(prefect_artifacts, "_TIMEOUT_S", 0.05)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(uuid4()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 1}):
            yield server


def tries(server: socket.socket) -> int:
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_a_server_that_hangs_is_asked_once_for_the_runs_number(silent: socket.socket) -> None:
    assert naming._number() == ""
    assert tries(silent) == 1


def test_a_server_that_hangs_is_told_the_tags_once(silent: socket.socket) -> None:
    naming.tag_flow_run(SweepConfig.from_flow_parameters({"num_tune_samples": 1, "max_iterations": 1}))
    assert tries(silent) == 1

"""What the Prefect UI shows of a sweep, against a real server that answers, hangs, fails, goes and comes back."""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect_api import ask
from reported_sweeps import (
    FINAL,
    ITERATIONS,
    TRIALS,
    Middle,
    config_in,
    in_flow,
    opened_for,
    progress_of,
    tell,
)
from tracking_bed import Fault, Proxy, proxy_before
from waiting import wait_until

from plato_core.config import SweepConfig
from plato_core.prefect_server import TemporaryServer
from plato_core.report import mlflow_run, prefect_artifacts, sinks
from plato_core.report.sinks import Report
from plato_core.sweep.events import Result
from plato_core.tracking.client import make_client
from plato_core.tracking.parent import ParentRun
from tasks.summary import write_summary

LOGGER = logging.getLogger("test_artifacts")
KEYS = {"pbt-ppo-leaderboard", "pbt-ppo-mlflow", "pbt-ppo-progress"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of these tests; its address."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("DO_NOT_TRACK", "1")
        with TemporaryServer(home / "server.log") as server:
            server.wait(120.0)
            yield server.api_url


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    """What stands between the sweep's artifacts and that server."""
    port = urlsplit(server).port
    assert port is not None
    with proxy_before(port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, ParentRun]:
    config = config_in(tmp_path_factory.mktemp("store"))
    return config, opened_for(config)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent every few seconds in earnest goes at once here; a busy machine may take its time to answer."""
    monkeypatch.setattr(prefect_artifacts, "EVERY_S", 0.02)
    monkeypatch.setattr(prefect_artifacts, "_TIMEOUT_S", 30.0)
    monkeypatch.setattr(mlflow_run, "EVERY_S", 3600.0)


@pytest.fixture(autouse=True)
def settings(server: str) -> Iterator[None]:
    with temporary_settings(
        {PREFECT_API_URL: server, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    ):
        yield


@dataclass
class Watch:
    """Sweeps that are told through a proxy, and what the server has of them."""

    server: str
    proxy: Proxy
    config: SweepConfig
    opened: ParentRun

    def tell(self, middle: Middle, api_url: str | None = None) -> UUID:
        """Tells of a sweep from inside a flow; only what is told of it goes through the proxy."""
        self.progress = progress_of(self.config)

        def step() -> None:
            with temporary_settings({PREFECT_API_URL: api_url or f"{self.proxy.uri}/api"}):
                tell(self.config, self.opened, self.progress, middle, LOGGER)

        return in_flow(step)

    def sent(self, method: str, answer: Fault = 200) -> int:
        """How many requests about artifacts were answered so."""
        return sum(
            seen.method == method and "/artifacts" in seen.path and seen.answer == answer
            for seen in list(self.proxy.seen)
        )

    def artifacts(self, run_id: UUID) -> dict[str, dict[str, Any]]:
        found = self.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [str(run_id)]}}})
        by_key = {artifact["key"]: artifact for artifact in found}
        assert len(by_key) == len(found), "an artifact was made more than once"
        return by_key

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        return ask(self.server + path, "POST", body)

    def assert_complete(self, run_id: UUID, summary: bool = False) -> None:
        artifacts = self.artifacts(run_id)
        assert set(artifacts) == KEYS | ({"pbt-ppo-summary"} if summary else set())
        progress = artifacts["pbt-ppo-progress"]
        assert progress["data"] == 100.0
        assert progress["description"].startswith(
            f"finished: {ITERATIONS}/{ITERATIONS} iterations, best {FINAL} of 475"
        )
        table = json.loads(artifacts["pbt-ppo-leaderboard"]["data"])
        assert [row["trial"] for row in table] == ["0", "1", "2", "3"]
        assert table[3] == {
            "trial": "3", "return": "297.0", "best return": "297.0", "iteration": "30", "lr": "0.002",
            "state": "stopped", "generation": "1",
        }  # fmt: skip


@pytest.fixture
def watch(server: str, proxy: Proxy, store: tuple[SweepConfig, ParentRun]) -> Watch:
    return Watch(server, proxy, *store)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_each_artifact_is_made_once_and_then_changed_in_place(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    def many_updates(report: Report) -> None:
        wait_until(lambda: watch.sent("POST", 201) == len(KEYS))
        for update in range(1, 11):
            changed = watch.sent("PATCH", 204)
            index = update % TRIALS
            report.update(Result(trial=f"t{index}", iteration=15, episode_return=150.5 + update, metric_value=150.5))
            wait_until(lambda changed=changed: watch.sent("PATCH", 204) > changed)

    run_id = watch.tell(many_updates)
    watch.assert_complete(run_id)
    assert watch.sent("PATCH", 204) >= 10
    assert watch.sent("POST", 201) == len(KEYS)
    assert messages(caplog) == []
    for artifact in watch.artifacts(run_id).values():
        assert artifact["task_run_id"] is not None
    link = watch.artifacts(run_id)["pbt-ppo-mlflow"]["data"]
    assert f"mlflow ui --backend-store-uri {watch.config.store_uri}" in link
    place = f"#/experiments/{watch.opened.experiment_id}/runs/{watch.opened.run_id}"
    assert f"{place}?workflowType=machine_learning" in link


def test_sweeps_of_an_experiment_share_their_keys_and_the_page_of_artifacts_shows_the_latest(watch: Watch) -> None:
    watch.tell(lambda report: None)
    latest = str(watch.tell(lambda report: None))
    rows = watch.ask("/artifacts/latest/filter", {"artifacts": {"key": {"any_": sorted(KEYS)}}})
    assert {row["key"]: row["flow_run_id"] for row in rows} == dict.fromkeys(KEYS, latest)


def test_a_server_that_hangs_delays_no_event_and_is_told_the_rest_when_it_is_back(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_artifacts, "_TIMEOUT_S", 3.0)
    hanging, released = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> Fault | None:
        hanging.set()
        assert released.wait(60)
        return "reset"

    def while_it_hangs(report: Report) -> None:
        watch.proxy.fault = hang
        report.update(Result(trial="t0", iteration=15, episode_return=151.0, metric_value=151.0))
        assert hanging.wait(20)
        taken = watch.sent("POST", 201) + watch.sent("PATCH", 204)
        for iteration in range(16, 1016):
            report.update(Result(trial="t0", iteration=iteration - 1000, episode_return=1.0, metric_value=1.0))
        wait_until(lambda: bool(messages(caplog)))
        assert not released.is_set()  # all of that was taken in, and nobody waited
        watch.proxy.fault = lambda method, path: None
        released.set()
        wait_until(lambda: watch.sent("POST", 201) + watch.sent("PATCH", 204) > taken)

    run_id = watch.tell(while_it_hangs)
    watch.assert_complete(run_id)
    assert messages(caplog) == ["the Prefect UI is not up to date, the sweep goes on: timed out"]


@pytest.mark.parametrize(("fault", "said"), [(500, "500 Internal Server Error"), ("reset", "disconnected")])
def test_a_server_that_fails_is_one_warning_and_is_told_the_rest_when_it_is_well_again(
    watch: Watch, caplog: pytest.LogCaptureFixture, fault: Fault, said: str
) -> None:
    def while_it_fails(report: Report) -> None:
        watch.proxy.fault = lambda method, path: fault
        report.update(Result(trial="t0", iteration=15, episode_return=151.0, metric_value=151.0))
        wait_until(lambda: sum(seen.answer == fault for seen in list(watch.proxy.seen)) >= 3)
        watch.proxy.fault = lambda method, path: None

    run_id = watch.tell(while_it_fails)
    watch.assert_complete(run_id)
    (warning,) = messages(caplog)
    assert warning.startswith("the Prefect UI is not up to date, the sweep goes on: ")
    assert said in warning


def test_a_server_that_is_gone_for_good_costs_the_sweep_nothing(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gone = taken.getsockname()[1]
    watch.tell(lambda report: None, api_url=f"http://127.0.0.1:{gone}/api")
    assert watch.progress.ended() is not None
    (warning,) = messages(caplog)
    assert "refused" in warning


def test_one_that_accepts_and_never_answers_costs_a_moment_at_the_end(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_artifacts, "_TIMEOUT_S", 600.0)
    monkeypatch.setattr(sinks, "LAST_UPDATE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        watch.tell(lambda report: None, api_url=f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        assert watch.progress.ended() is not None
    assert messages(caplog) == ["the Prefect UI is not up to date, the sweep goes on: no answer yet to its last update"]


def test_one_whose_making_was_not_confirmed_is_found_again(watch: Watch) -> None:
    left: list[Fault] = ["lost reply"] * len(KEYS)

    def lose_replies(method: str, path: str) -> Fault | None:
        return left.pop() if left and method == "POST" and path.endswith("/artifacts/") else None

    watch.proxy.fault = lose_replies
    watch.assert_complete(watch.tell(lambda report: wait_until(lambda: not left)))


def test_one_that_somebody_deleted_is_made_again(watch: Watch) -> None:
    def delete(report: Report) -> None:
        wait_until(lambda: watch.sent("POST", 201) == len(KEYS))
        (row,) = watch.ask("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["pbt-ppo-progress"]}}})
        ask(f"{watch.server}/artifacts/{row['latest_id']}", "DELETE")

    watch.assert_complete(watch.tell(delete))


def test_the_summary_is_an_artifact_with_the_curves_in_it_and_files_of_the_parent_run(
    watch: Watch, tmp_path: Path
) -> None:
    progress, written = progress_of(watch.config), list[Path]()

    def step() -> None:
        tell(watch.config, watch.opened, progress, lambda report: None, LOGGER)
        written.extend(write_summary(watch.config, watch.opened, progress, tmp_path, error="no run qualifies"))

    run_id = in_flow(step)
    summary = watch.artifacts(run_id)["pbt-ppo-summary"]["data"]
    assert "No checkpoint was fetched: no run qualifies" in summary
    (picture,) = re.findall(r"!\[learning curves\]\(data:image/png;base64,([^)]+)\)", summary)
    assert base64.b64decode(picture) == (tmp_path / "learning_curves.png").read_bytes()
    assert [path.name for path in written] == ["summary.md", "learning_curves.png"]
    client = make_client(watch.config.store_uri)
    names = {info.path for info in client.list_artifacts(watch.opened.run_id)}
    assert {"summary.md", "learning_curves.png"} <= names
    (down := tmp_path / "down").mkdir()
    stored = Path(client.download_artifacts(watch.opened.run_id, "summary.md", str(down)))
    assert "![learning curves](learning_curves.png)" in stored.read_text()


def test_a_server_that_was_away_at_the_end_gets_the_last_figures_with_the_summary(watch: Watch, tmp_path: Path) -> None:
    def go_away(report: Report) -> None:
        wait_until(lambda: watch.sent("POST", 201) == len(KEYS))
        watch.proxy.fault = lambda method, path: "reset"

    progress = progress_of(watch.config)

    def step() -> None:
        with temporary_settings({PREFECT_API_URL: f"{watch.proxy.uri}/api"}):
            tell(watch.config, watch.opened, progress, go_away, LOGGER)
        write_summary(watch.config, watch.opened, progress, tmp_path)

    watch.assert_complete(in_flow(step), summary=True)


def test_a_server_that_starts_again_while_the_summary_is_written_gets_it(watch: Watch, tmp_path: Path) -> None:
    progress, left = progress_of(watch.config), list[Fault](["reset", 503])

    def step() -> None:
        tell(watch.config, watch.opened, progress, lambda report: None, LOGGER)
        watch.proxy.fault = lambda method, path: left.pop() if left else None
        with temporary_settings({PREFECT_API_URL: f"{watch.proxy.uri}/api"}):
            write_summary(watch.config, watch.opened, progress, tmp_path, patience_s=60)

    watch.assert_complete(in_flow(step), summary=True)
    assert not left


def test_a_summary_that_cannot_be_written_is_a_warning(watch: Watch, tmp_path: Path) -> None:
    written: list[list[Path]] = []

    def step() -> None:
        folder = tmp_path / "not there"
        written.append(write_summary(watch.config, watch.opened, progress_of(watch.config), folder))

    in_flow(step)
    assert written == [[]]

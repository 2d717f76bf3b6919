"""What MLflow's parent run shows of a sweep, in a real SQLite store and with a server that is gone."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger
from reported_sweeps import FINAL, ITERATIONS, config_in, opened_for, progress_of, tell

from plato_core.config import SweepConfig
from plato_core.report import mlflow_run
from plato_core.report.sinks import Report
from plato_core.sweep.events import Result
from plato_core.tracking.client import make_client
from plato_core.tracking.parent import ParentRun, close_parent
from tasks.summary import write_summary

LOGGER = logging.getLogger("test_progress_in_mlflow")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """Of a store that all tests share: a new one takes seconds."""
    return config_in(tmp_path_factory.mktemp("store"))


def test_the_parent_run_has_the_figures_as_series_and_in_its_description(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_run, "EVERY_S", 0.0)
    opened, progress = opened_for(config), progress_of(config)
    client = make_client(config.store_uri)

    def halfway(report: Report) -> None:
        deadline = time.monotonic() + 60
        while not (tags := client.get_run(opened.run_id).data.tags).get("plato.progress", "").startswith("15/30"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert tags["mlflow.note.content"].startswith("**15/30 iterations, best 150.0 of 475")
        assert "| 0 | 150.0 | 150.0 | 15 | 0.001 | running | 0 |" in tags["mlflow.note.content"]

    tell(config, opened, progress, halfway, LOGGER)
    run = client.get_run(opened.run_id)
    assert run.data.tags["plato.progress"].startswith("finished: 30/30 iterations")
    for name, last in (("progress", 1.0), ("best_episode_reward_mean", FINAL)):
        series = client.get_metric_history(opened.run_id, name)
        steps = [point.step for point in series]
        assert len(steps) >= 2
        assert steps == sorted(steps)
        assert (series[-1].step, series[-1].value) == (ITERATIONS, last)

    # The winner's value may be less than the best that was ever seen; it is what the run shows in the end.
    step = progress.snapshot().iteration
    close_parent(config.store_uri, opened.run_id, "FINISHED", metrics={"best_episode_reward_mean": 290.0}, step=step)
    assert client.get_run(opened.run_id).data.metrics["best_episode_reward_mean"] == 290.0


def test_a_long_sweep_leaves_one_point_for_an_iteration_however_often_it_is_told(config: SweepConfig) -> None:
    opened, progress = opened_for(config), progress_of(config)
    with mlflow_run.following(config, opened, progress.snapshot) as send:
        for value in (1.0, 2.0, 3.0):
            progress.apply(Result(trial="t0", iteration=1, episode_return=value, metric_value=value), value)
            send()
    series = make_client(config.store_uri).get_metric_history(opened.run_id, "best_episode_reward_mean")
    assert [(point.step, point.value) for point in series] == [(1, 1.0)]


def test_a_store_that_is_gone_is_one_warning_and_the_sweep_ends_as_it_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_run, "EVERY_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
    config = config_in(tmp_path, tracking_uri=gone)
    progress = progress_of(config)
    tell(config, ParentRun("0" * 32, "1", ""), progress, lambda report: time.sleep(0.3), LOGGER)
    assert progress.ended() is not None
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith(f"the parent run in MLflow is not up to date, the sweep goes on: tracking server {gone}")


def test_outside_of_a_flow_run_the_summary_goes_to_mlflow_alone(config: SweepConfig, tmp_path: Path) -> None:
    opened, progress = opened_for(config), progress_of(config)
    tell(config, opened, progress, lambda report: None, LOGGER)
    with disable_run_logger():
        write_summary.fn(config, opened, progress, tmp_path)
    names = {info.path for info in make_client(config.store_uri).list_artifacts(opened.run_id)}
    assert names == {"summary.md", "learning_curves.png"}

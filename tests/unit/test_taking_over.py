"""A job of Azure ML that goes on with a sweep on which another one still works."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger

from flows import sweep_and_fetch
from plato_core.aml import sweepentry
from plato_core.config_sources import load_config
from plato_core.errors import ConfigError
from plato_core.sweep import folder

SWEEP = "20260801-020000-aaaaaa"
WORKSPACE = (
    "azureml://eastus.api.azureml.ms/mlflow/v1.0/subscriptions/11111111-1111-1111-1111-111111111111/"
    "resourceGroups/rg/providers/Microsoft.MachineLearningServices/workspaces/ws"
)


def test_nothing_in_the_sweeps_folder_is_touched_before_it_is_known_to_be_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SWEEP).mkdir()
    begun = load_config({"preset": "test-local", "tracking_uri": WORKSPACE, "storage_path": str(tmp_path)}, None, {})
    (tmp_path / SWEEP / folder.CONFIG_NAME).write_text(begun.to_yaml())
    monkeypatch.setenv("AZUREML_RUN_ID", "pf-the-next-001")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", WORKSPACE)
    asked = []

    def refuse(config: Any, job: Any, patience_s: float) -> None:
        asked.append((config.resume, job.run_id))
        raise ConfigError("resume: another job still works on this sweep")

    monkeypatch.setattr(sweep_and_fetch, "take_over_sweep", refuse)
    monkeypatch.setattr(sweep_and_fetch, "check_machine", lambda config: None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with disable_run_logger():
        ended: Any = sweep_and_fetch.sweep.fn(resume=SWEEP, storage_path=str(tmp_path), max_iterations=1000)
    assert isinstance(ended, State)
    assert ended.message == "resume: another job still works on this sweep"
    assert asked == [(SWEEP, "pf-the-next-001")]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_job_that_waits_for_its_store_ends_when_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def away(*arguments: Any) -> None:
        asked.append(arguments)
        raise ConnectionError("no route")

    go = SimpleNamespace(tracking_uri=WORKSPACE, parent_run_id="p", experiment_id="1")
    job: Any = SimpleNamespace(order=SimpleNamespace(go=go, sweep_id=SWEEP, ended={}), sweeps=str(tmp_path))
    monkeypatch.setattr(sweepentry, "_config", lambda job, ray_address: None)
    monkeypatch.setattr(sweepentry.JobRun, "tracked_in", lambda uri: SimpleNamespace(run_id="of the job"))
    monkeypatch.setattr(sweepentry.jobs, "take_over", away)
    assert sweepentry.run_sweep(job, "auto", told_to_stop=lambda: bool(asked)) == 143
    assert len(asked) == 1
    assert "plato: waiting for the tracking store, up to 15 min: no route" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []

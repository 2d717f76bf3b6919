"""A job of Azure ML that goes on with a sweep on which another one still works."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger

from flows import sweep_and_fetch
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

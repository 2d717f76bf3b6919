"""What a run's settings make of a job, and what is refused before there is one. No server, no Azure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_HOME,
    PREFECT_LOGGING_LEVEL,
    temporary_settings,
)

from plato_core.aml.fields import PoolFields
from plato_core.aml.job import JobSpec, job_name
from plato_core.aml.joblog import LineFilter
from plato_core.aml.pool import AzureMLJobConfiguration, template
from plato_core.errors import ConfigError

RUN = FlowRun(
    id=UUID(int=7), flow_id=UUID(int=8), name="quick-fox", run_count=2, parameters={"experiment_name": "pole"}
)
API = "https://prefect.example.com/api"
VAULT = "https://v.vault.azure.net/secrets/key"


def spec(tmp_path: Path, settings: dict[Any, Any] | None = None, **values: Any) -> JobSpec:
    configuration = AzureMLJobConfiguration.model_validate({"code": str(tmp_path), **values})
    with temporary_settings({PREFECT_API_URL: API, **(settings or {})}):
        configuration.prepare_for_flow_run(RUN)
        return configuration.job_spec(RUN)


def test_each_field_of_the_form_has_a_title_a_description_and_an_example() -> None:
    properties = template()["variables"]["properties"]
    for name in PoolFields.model_fields:
        field = properties[name]
        assert field["title"], name
        assert field["description"].endswith("."), name
        assert field.get("examples") or field.get("enum"), name
    assert template()["job_configuration"]["compute"] == "{{ compute }}"


def test_prefect_finds_the_worker_without_importing_azure() -> None:
    code = "import sys, plato_core.aml.worker; print([name for name in sys.modules if name.split('.')[0] == 'azure'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_job_is_named_by_its_run_and_attempt() -> None:
    assert job_name(RUN) == "pf-00000000-0000-0000-0000-000000000007-002"
    assert len(job_name(RUN)) == len(job_name(RUN.model_copy(update={"run_count": 100})))


def test_two_workers_submit_the_same_job(tmp_path: Path) -> None:
    def job(worker: int) -> JobSpec:
        configuration = AzureMLJobConfiguration.model_validate({"code": str(tmp_path)})
        with temporary_settings({PREFECT_API_URL: API}):
            configuration.prepare_for_flow_run(RUN, worker_name=f"worker-{worker}", worker_id=UUID(int=worker))
            return configuration.job_spec(RUN)

    assert job(1) == job(2)


def test_the_job_gets_the_contract_and_nothing_of_the_workers_machine(tmp_path: Path) -> None:
    settings = {PREFECT_HOME: tmp_path / "home", PREFECT_LOGGING_LEVEL: "DEBUG", PREFECT_API_KEY: "pnu_secret"}
    headers = {
        PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Token": "header-secret"},
        PREFECT_API_AUTH_STRING: "admin:auth-secret",
    }
    job = spec(
        tmp_path,
        settings | headers,
        api_key_secret=VAULT,
        api_auth_secret=f"{VAULT}2",
        instance_count=3,
        env={"WANDB_MODE": "offline", "TZ": None},
        tags={"team": "rl"},
    )
    assert job.env["PREFECT__FLOW_RUN_ID"] == str(RUN.id)
    assert job.env["PREFECT_API_URL"] == API
    assert job.env["PLATO_AML_NODES"] == "3"
    assert job.env["PLATO_AML_LAUNCHER"] == job.launcher == "ray"
    assert job.env["PLATO_AML_API_KEY_SECRET"] == VAULT
    assert job.env["PLATO_AML_API_AUTH_SECRET"] == f"{VAULT}2"
    assert job.env["WANDB_MODE"] == "offline"
    assert job.env["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert "PREFECT_HOME" not in job.env
    assert "secret" not in job.model_dump_json().replace("/secrets/", "").replace("_secret", "").replace("SECRET", "")
    assert job.experiment == "pole"
    assert job.tags == {"prefect.flow_run_id": str(RUN.id), "prefect.flow_run": "quick-fox", "team": "rl"}
    assert job.command == "python -m plato_core.aml.entry"


def test_one_node_needs_no_launcher(tmp_path: Path) -> None:
    job = spec(tmp_path, launcher="mpi", experiment="mine")
    assert job.launcher == "single"
    assert job.experiment == "mine"
    assert "PLATO_AML_API_KEY_SECRET" not in job.env


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        ({PREFECT_API_URL: "http://127.0.0.1:4200/api"}, {}, "http://127.0.0.1:4200/api, leads to this machine only"),
        ({PREFECT_API_URL: "http://localhost:4200/api"}, {}, "set api_url of the pool"),
        ({PREFECT_API_URL: None}, {}, "the worker's own, none, leads to this machine only"),
        ({PREFECT_API_KEY: "pnu_secret"}, {}, "PREFECT_API_KEY: the worker needs one"),
        ({PREFECT_API_AUTH_STRING: "admin:pass"}, {"api_key_secret": VAULT}, "set api_auth_secret of the pool"),
        ({}, {"env": {"PREFECT_API_KEY": "pnu_secret"}}, "store it in an Azure key vault and set api_key_secret"),
        ({}, {"env": {"AZURE_CLIENT_SECRET": "geheim"}}, "env.AZURE_CLIENT_SECRET: a secret would stand"),
        ({}, {"api_url": "https://me:geheim@prefect.example.com/api"}, "PREFECT_API_URL: a password in it"),
        ({}, {"code": "/no/such"}, "code: there is no folder '/no/such'"),
        ({}, {"code": "~"}, "would be uploaded whole"),
        ({}, {"ray_port": 10001}, "ray_port: 10001 comes into the way of Ray's workers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, settings: dict[Any, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(tmp_path, settings, **values)
    assert message in str(caught.value)
    assert not {"pnu_secret", "admin:pass", "geheim"} & set(str(caught.value).replace(":", " ").split())


@pytest.mark.parametrize(
    "values", [{"api_url": "http://127.0.0.1:4200/api"}, {"env": {"PREFECT_API_URL": "http://[::1]/api"}}]
)
def test_an_address_that_was_given_on_purpose_is_taken(tmp_path: Path, values: dict[str, Any]) -> None:
    assert spec(tmp_path, {PREFECT_API_URL: None}, **values).env["PREFECT_API_URL"].startswith("http://")


def test_half_a_workspace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="resource_group, workspace: not set, but subscription_id"):
        AzureMLJobConfiguration.model_validate({"subscription_id": "s"}).find_workspace()
    with pytest.raises(ConfigError, match="no Azure ML workspace: there is no"):
        AzureMLJobConfiguration.model_validate({}).find_workspace()
    whole = {"subscription_id": "s", "resource_group": "g", "workspace": "w"}
    assert AzureMLJobConfiguration.model_validate(whole).find_workspace().name == "w"


def test_what_the_flow_logs_itself_is_left_out_of_the_jobs_log() -> None:
    lines = [
        "waiting for Ray nodes: 1 of 2",
        "12:00:00.123 | INFO    | prefect.engine - View at http://p/runs/1",
        "12:00:01.123 | INFO    | Flow run 'quick-fox' - Beginning flow run",
        "12:00:01.200 | ERROR   | Task run 'sweep-0' - Task run failed",
        "Traceback (most recent call last):",
        '  File "x.py", line 3, in sweep',
        "ValueError: no",
        "(raylet) a worker died",
        "2026-01-02 12:00:02,123\tSUCC scripts.py:1085 -- Ray runtime started.",
        "plato: flow run 0123 is Failed: no",
        "",
        "Killed",
    ]
    assert LineFilter().kept(lines) == [lines[0], lines[1], lines[7], lines[-1]]

"""Jobs of the emulated workspace whose commands are a test's own, submitted by plain requests."""

from __future__ import annotations

import shlex
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from aml_bed import Emulator, inherited_env
from stack import ROOT

TESTS = Path(__file__).parent
_MANAGEMENT = "https://management.azure.com"
_ENDED = ("Completed", "Failed", "Canceled")


def laptop_env(emulator: Emulator) -> dict[str, str]:
    """The variables of somebody who is signed in, and of no job."""
    return inherited_env() | emulator.env() | {"PYTHONPATH": f"{ROOT}:{TESTS}:{TESTS / 'integration'}"}


def start_job(emulator: Emulator, name: str, command: list[str], experiment: str = "jobs", **variables: str) -> None:
    """Submits a job of one node. Its output `sweeps` is one folder of the datastore, whichever job has it.

    Args:
        emulator: The workspace.
        name: The job's.
        command: Run by this Python.
        experiment: The job's.
        variables: Of its environment.
    """
    environment = {
        "PYTHONPATH": f"{ROOT}:{TESTS}:{TESTS / 'integration'}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        **variables,
    }
    workspace = (
        f"/subscriptions/{emulator.subscription_id}/resourceGroups/{emulator.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{emulator.workspace}"
    )
    sweeps = {
        "jobOutputType": "uri_folder",
        "mode": "ReadWriteMount",
        "uri": "azureml://datastores/workspaceblobstore/paths/plato/sweeps",
    }
    properties: dict[str, Any] = {
        "jobType": "Command",
        "command": shlex.join([sys.executable, *command]),
        "environmentId": "azureml://registries/azureml/environments/any/versions/1",
        "computeId": f"{workspace}/computes/cpu-cluster",
        "experimentName": experiment,
        "displayName": name,
        "environmentVariables": environment,
        "outputs": {"sweeps": sweeps},
        "resources": {"instanceCount": 1},
    }
    proxy = f"http://127.0.0.1:{emulator.http_port}"
    with httpx.Client(proxy=proxy, verify=ssl.create_default_context(cafile=emulator.ca_file), trust_env=False) as ask:
        form = {
            "grant_type": "client_credentials",
            "client_id": emulator.env()["AZURE_CLIENT_ID"],
            "client_secret": emulator.client_secret,
            "scope": f"{_MANAGEMENT}/.default",
        }
        login = f"https://login.microsoftonline.com/{emulator.tenant_id}/oauth2/v2.0/token"
        token = ask.post(login, data=form).raise_for_status().json()["access_token"]
        answer = ask.put(
            f"{_MANAGEMENT}{workspace}/jobs/{name}?api-version=2025-01-01-preview",
            json={"properties": properties},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.is_success, answer.text


def wait_for_job(emulator: Emulator, name: str, timeout_s: float = 200.0) -> Mapping[str, Any]:
    """Returns what became of a job."""
    deadline = time.monotonic() + timeout_s
    while (job := emulator.job(name))["status"] not in _ENDED:
        assert time.monotonic() < deadline, emulator.log(name)
        time.sleep(0.2)
    return job

"""The one workspace there is: its names, its hosts, and which hosts belong to it at all."""

from __future__ import annotations

import re

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
TENANT = "11111111-1111-1111-1111-111111111111"
WORKSPACE_GUID = "22222222-2222-2222-2222-222222222222"
CLIENT_ID = "33333333-3333-3333-3333-333333333333"
RESOURCE_GROUP, WORKSPACE, LOCATION = "rg-emu", "ws-emu", "eastus"
ACCOUNT, VAULT = "emustore", "kv-emu"
PROVIDER = "Microsoft.MachineLearningServices"
SUFFIX = "core.windows.net"

ARM_HOST = "management.azure.com"
AAD_HOST = "login.microsoftonline.com"
API_HOST = f"{LOCATION}.api.azureml.ms"
BLOB_HOST = f"{ACCOUNT}.blob.{SUFFIX}"
VAULT_HOST = f"{VAULT}.vault.azure.net"
PUBLISHED_HOST = "prefect.example.com"  # none of Azure's: a server of the user's own, see `published`
HOSTS = (
    ARM_HOST,
    AAD_HOST,
    "ml.azure.com",
    "*.api.azureml.ms",
    f"*.blob.{SUFFIX}",
    f"*.dfs.{SUFFIX}",
    f"*.file.{SUFFIX}",
    "*.vault.azure.net",
    PUBLISHED_HOST,
)

WORKSPACE_ID = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}/providers/{PROVIDER}/workspaces/{WORKSPACE}"
)
ARM, API, BLOB = f"https://{ARM_HOST}", f"https://{API_HOST}", f"https://{BLOB_HOST}"
TRACKING = f"azureml://{API_HOST}/mlflow/v1.0{WORKSPACE_ID}"

ARTIFACTS, DEFAULT_STORE = "azureml", "azureml-blobstore-emu"
DATASTORES = {"workspaceblobstore": DEFAULT_STORE, "workspaceartifactstore": ARTIFACTS}  # name -> container

_ALLOWED = re.compile("|".join("(?:" + re.escape(host).replace(r"\*", r"[\w-]+") + ")" for host in HOSTS))


def is_azure(host: str) -> bool:
    """Whether a host belongs to the emulated cloud; every other one is refused."""
    return _ALLOWED.fullmatch(host) is not None


def artifact_prefix(run_id: str) -> str:
    """Where in the artifact container a run's files lie."""
    return f"ExperimentRun/dcid.{run_id}"


def artifact_root(experiment: str) -> str:
    """The artifact location of an experiment's runs, as MLflow is told it."""
    return f"azureml://{API_HOST}/mlflow/v2.0{WORKSPACE_ID}/experiments/{experiment}/runs"

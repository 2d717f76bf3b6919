"""Who is signed in to Azure, and which workspace they meet."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from plato_core.aml.clouds import current_cloud, workspace_refused
from plato_core.aml.credentials import credential, sign_in_error
from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, of_error, warned
from plato_core.errors import AmlError
from plato_core.report.text import duration, plain

_WAYS = {
    "EnvironmentCredential": "a service principal of the environment",
    "WorkloadIdentityCredential": "a workload identity",
    "ManagedIdentityCredential": "a managed identity",
    "AzureCliCredential": "az login",
    "AzurePowerShellCredential": "Azure PowerShell",
    "AzureDeveloperCliCredential": "azd auth login",
}
_SOON_S = 300.0  # azure-identity itself gets another token five minutes before a token's end


def login(case: Case) -> Finding:
    """See whether a token can be had, for whom, and for how long it is good."""
    from azure.core.exceptions import AzureError

    found = credential()
    try:
        token = found.get_token(current_cloud().scope)
    except AzureError as error:
        raise sign_in_error(str(error)) from None
    case.credential = found
    left_s = token.expires_on - time.time()
    said = f"{_WAYS.get(found.way, found.way)}: {whom(claims(token.token))}"
    if left_s < _SOON_S:
        return warned(
            f"{said}; its token ends in {duration(left_s)}",
            "sign in anew with `az login` if it is not renewed by itself",
        )
    return fine(f"{said}, with a token for {duration(left_s)}")


def claims(token: str) -> dict[str, Any]:
    """Return what a token says of its owner; nothing where it cannot be read. It is not verified."""
    try:
        part = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def whom(told: dict[str, Any]) -> str:
    """Return whom a token is for."""
    user = next((told[name] for name in ("upn", "preferred_username", "unique_name") if told.get(name)), None)
    who = f"user {user}" if user else f"application {told.get('appid') or told.get('azp') or 'without a name'}"
    return plain(f"{who}, tenant {told.get('tid') or 'unknown'}")


def workspace(case: Case) -> Finding:
    """See whether the workspace that is meant is there, and lets whoever is signed in look at it."""
    from azure.core.exceptions import HttpResponseError

    case.workspace = named = case.settings.find_workspace()
    try:
        found = case.ml.workspaces.get(named.name)
    except HttpResponseError as error:
        if error.status_code in (401, 403, 404):
            return of_error(AmlError(workspace_refused(named, error.status_code)))
        raise
    assert found is not None  # the SDK's type allows for what it never returns
    case.region, case.tracking_uri = found.location or "", str(found.mlflow_tracking_uri or "")
    if not case.tracking_uri:
        return broken(f"{named} has no MLflow of its own", "name a workspace of Azure Machine Learning")
    closed = "" if found.public_network_access != "Disabled" else ", open to its own network only"
    return fine(f"{named} in {case.region}{closed}")

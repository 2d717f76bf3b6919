"""Azure's clouds, and where in them a workspace is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import stamina

from plato_core.errors import AmlError, AmlUnavailable

if TYPE_CHECKING:
    from plato_core.aml.workspace import Workspace

# As azure-ai-ml 1.35 asks for a workspace.
_API_VERSION = "2024-10-01-preview"
_TIMEOUT_S = 30.0
# The way out where Azure was not reached at all, and where it was and could not answer.
UNREACHED = "look at the network and its proxy (HTTPS_PROXY), and try again"
BUSY = "try again in a while"


@dataclass(frozen=True)
class Cloud:
    """One of Azure's clouds; its names as in azure-ai-ml 1.35 (`azure.ai.ml._azure_environments`).

    Attributes:
        name: What `AZUREML_CURRENT_CLOUD` calls it.
        login: Host of its sign-in.
        management: Host of its resource manager.
        regions: What the hosts of Azure ML's regions end in.
        studio: Host of Azure ML Studio.
    """

    name: str
    login: str
    management: str
    regions: str
    studio: str

    @property
    def scope(self) -> str:
        """What a token for its management, and for Azure ML, is asked for."""
        return f"https://{self.management}/.default"


PUBLIC = Cloud("AzureCloud", "login.microsoftonline.com", "management.azure.com", "api.azureml.ms", "ml.azure.com")
_CLOUDS = (
    PUBLIC,
    Cloud(
        "AzureUSGovernment", "login.microsoftonline.us", "management.usgovcloudapi.net", "api.ml.azure.us",
        "ml.azure.us",
    ),
    Cloud(
        "AzureChinaCloud", "login.chinacloudapi.cn", "management.chinacloudapi.cn", "api.ml.azure.cn",
        "studio.ml.azure.cn",
    ),
)  # fmt: skip


def current_cloud() -> Cloud:
    """Return the cloud that `AZUREML_CURRENT_CLOUD` names, which azure-ai-ml goes by too; else the public one."""
    named = os.environ.get("AZUREML_CURRENT_CLOUD")
    return next((cloud for cloud in _CLOUDS if cloud.name == named), PUBLIC)


def cloud_of(uri: str) -> Cloud:
    """Return the cloud of a workspace's tracking URI."""
    host = urlsplit(uri).netloc
    return next((cloud for cloud in _CLOUDS if host.endswith(cloud.regions)), PUBLIC)


@stamina.retry(on=AmlUnavailable, attempts=4, timeout=6 * _TIMEOUT_S)
def tracking_uri_of(workspace: Workspace) -> str:
    """Return the tracking URI of a workspace, as Azure has it: it holds the region's host.

    Raises:
        AmlUnavailable: Azure does not answer.
        AmlError: Nobody is signed in, or Azure knows no such workspace.
    """
    import requests

    from plato_core.aml.credentials import signed_in

    cloud = current_cloud()
    token = signed_in(cloud.scope).get_token(cloud.scope).token
    address = f"https://{cloud.management}{workspace.resource_id}?api-version={_API_VERSION}"
    try:
        answer = requests.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT_S)
    except requests.RequestException as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise AmlUnavailable(f"Azure does not answer ({cause}); {UNREACHED}") from None
    if answer.status_code != 200:
        kind = AmlUnavailable if answer.status_code in (408, 429) or answer.status_code >= 500 else AmlError
        raise kind(workspace_refused(workspace, answer.status_code))
    return str(answer.json()["properties"]["mlFlowTrackingUri"])


def workspace_refused(workspace: Workspace, status: int) -> str:
    """Return the message for what a workspace answers in place of an answer."""
    shown = f"Azure ML workspace {workspace}"
    if status == 404:
        return f"{shown} does not exist, or not for whoever is signed in; look at its config.json"
    if status in (401, 403):
        return (
            f"{shown} refuses whoever is signed in ({status}); they need the role AzureML Data Scientist "
            "there, or sign in as somebody else with `az login`"
        )
    return f"{shown} answers {status}; {BUSY}"

"""What a job finds on its node: clean variables as Azure ML sets them, its code, its inputs and outputs."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aml_emulator.cloud import (
    API,
    API_HOST,
    DATASTORES,
    DEFAULT_STORE,
    RESOURCE_GROUP,
    SUBSCRIPTION,
    WORKSPACE,
    WORKSPACE_GUID,
    WORKSPACE_ID,
)
from aml_emulator.history import RUN_AUDIENCE
from aml_emulator.state import Job, State
from aml_emulator.tokens import Tokens

_DATASTORE = re.compile(r"azureml://(?:subscriptions/.+/)?datastores/([^/]+)/paths/(.*?)/?")


class JobError(Exception):
    """The job cannot begin."""


@dataclass(frozen=True)
class World:
    """What the loopback world needs and Azure does not.

    Attributes:
        http_port: Of the proxy.
        ca_file: To trust.
        image_home: What the image has in the home folder, if anything.
    """

    http_port: int
    ca_file: Path
    image_home: Path | None = None

    def variables(self, addresses: Sequence[str]) -> dict[str, str]:
        proxy, here = f"http://127.0.0.1:{self.http_port}", ",".join(("127.0.0.1", "localhost", *addresses))
        named = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": here}
        return {
            **named,
            **{name.lower(): text for name, text in named.items()},
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "SSL_CERT_FILE": str(self.ca_file),
        }


def base_variables(job: Job, tokens: Tokens, world: World, folder: Path, addresses: Sequence[str]) -> dict[str, str]:
    """The variables of every node of a job; nothing of the emulator's own environment is among them."""
    token, expires = tokens.issue(RUN_AUDIENCE, runid=job.name)
    job.token = token
    (home := folder / "home").mkdir(parents=True, exist_ok=True)
    if world.image_home is not None:
        shutil.copytree(world.image_home, home, dirs_exist_ok=True)
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",  # this Python stands for the image's
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        **{name: str(text) for name, text in (job.properties.get("environmentVariables") or {}).items()},
        "MLFLOW_TRACKING_URI": f"azureml://{API_HOST}/mlflow/v2.0{WORKSPACE_ID}",
        "MLFLOW_TRACKING_TOKEN": token,
        "MLFLOW_RUN_ID": job.name,
        "MLFLOW_EXPERIMENT_ID": job.experiment_id,
        "MLFLOW_EXPERIMENT_NAME": job.experiment,
        "AZUREML_RUN_ID": job.name,
        "AZUREML_ROOT_RUN_ID": job.name,
        "AZUREML_RUN_TOKEN": token,
        "AZUREML_RUN_TOKEN_EXPIRY": str(expires),
        "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION,
        "AZUREML_ARM_RESOURCEGROUP": RESOURCE_GROUP,
        "AZUREML_ARM_WORKSPACE_NAME": WORKSPACE,
        "AZUREML_ARM_PROJECT_NAME": job.experiment,
        "AZUREML_EXPERIMENT_ID": job.experiment_id,
        "AZUREML_WORKSPACE_ID": WORKSPACE_GUID,
        "AZUREML_SERVICE_ENDPOINT": API,
        "AZUREML_DISCOVERY_SERVICE_ENDPOINT": f"{API}/discovery",
        "AZUREML_CURRENT_CLOUD": "AzureCloud",
        "AZUREML_NODE_COUNT": str(job.nodes),
        "AZ_BATCHAI_JOB_TEMP": str(folder / "tmp"),
        "MSI_ENDPOINT": f"http://127.0.0.1:{world.http_port}/msi/token",
        "MSI_SECRET": tokens.identity_secret,
        "DEFAULT_IDENTITY_CLIENT_ID": "emu-identity",
        **world.variables(addresses),
    }


def copy_code(job: Job, state: State, target: Path) -> None:
    """Puts the job's code folder on a node; every node has a copy of its own."""
    target.mkdir(parents=True)
    if code := job.properties.get("codeId"):
        found = re.search(r"/codes/([^/]+)/versions/([^/]+)$", code)
        assert found
        shutil.copytree(state.codes[found[1], found[2]].folder, target, dirs_exist_ok=True)


def mounted(job: Job, state: State, folder: Path, variables: dict[str, str]) -> str:
    """Mounts inputs and outputs, adds their variables, and returns the command with their paths in it.

    The place of a mount is a job's own, as in the service: only what lies below it is shared between jobs.

    Raises:
        JobError: If an input is not there.
    """
    command: str = job.properties["command"]
    mounts = folder / "mounts"
    mounts.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, str, str]] = []
    for name, wanted in (job.properties.get("inputs") or {}).items():
        if wanted["jobInputType"] == "literal":
            found.append(("input", name, str(wanted["value"])))
            continue
        target = _stored(state, wanted)
        if target is None or not target.exists():
            raise JobError(f"The input {name} was not found: {wanted.get('uri')}")
        found.append(("input", name, _mount(mounts / f"INPUT_{name}", target)))
    for name, wanted in (job.properties.get("outputs") or {}).items():
        target = _stored(state, wanted) or state.container(DEFAULT_STORE) / "azureml" / job.name / name
        target.mkdir(parents=True, exist_ok=True)
        found.append(("output", name, _mount(mounts / name, target)))
    for kind, name, text in found:
        command = command.replace(f"${{{{{kind}s.{name}}}}}", text)
        for spelled in {name, name.upper()}:
            variables[f"AZURE_ML_{kind.upper()}_{spelled}"] = text
    return command


def _stored(state: State, wanted: Mapping[str, Any]) -> Path | None:
    if not (uri := wanted.get("uri")):
        return None
    found = _DATASTORE.fullmatch(uri)
    if not found or found[1] not in DATASTORES:
        raise JobError(f"The datastore of {uri} is not known.")
    return state.container(DATASTORES[found[1]]) / found[2]


def _mount(link: Path, target: Path) -> str:
    link.symlink_to(target)
    return str(link)

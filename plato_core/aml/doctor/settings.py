"""Where the settings of a deployment's jobs come from: the Prefect server, or else the project's own prefect.yaml."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plato_core import config_yaml
from plato_core.aml import WORKER_TYPE
from plato_core.aml.fields import PoolFields
from plato_core.aml.pool import AzureMLJobConfiguration
from plato_core.deploying import PREFECT_YAML
from plato_core.errors import ConfigError
from plato_core.report.text import hide_passwords, plain

DEPLOYMENT, POOL = "sweep/aml", "aml"
KNOWN = (*PoolFields.model_fields, "env", "name", "labels", "command")


@dataclass(frozen=True)
class Found:
    """A pool's form and what a deployment has over it.

    Attributes:
        source: Where they come from, in words.
        form: The pool's base job template; None for that of a new one.
        variables: The deployment's job variables.
        note: Why they do not come from a deployment of a Prefect server; empty if they do.
        deployed: Whether they do.
    """

    source: str
    form: Mapping[str, Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    deployed: bool = False

    def filled(self, overrides: Mapping[str, Any]) -> AzureMLJobConfiguration:
        """Return the settings of a job.

        Args:
            overrides: As a run gives them over those of its deployment.

        Raises:
            ConfigError: One of them is not possible.
        """
        variables = {**self.variables, **overrides}
        if "env" in self.variables and "env" in overrides:  # as Prefect does, these are joined
            variables["env"] = self.variables["env"] | overrides["env"]
        try:
            if self.form is None:  # Prefect's own way would start a server to ask for blocks
                return AzureMLJobConfiguration.model_validate(variables)
            return asyncio.run(AzureMLJobConfiguration.from_template_and_values(dict(self.form), variables))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{name}: {first['input']!r} is not possible: {first['msg'].lower()}") from None
        except Exception as error:  # of Prefect's blocks and variables, which a value may refer to
            raise ConfigError(f"the settings of {self.source} cannot be filled in: {plain(str(error))}") from None


def look_up(deployment: str | None, folder: Path) -> Found:
    """Return the settings that a run of a deployment would have.

    Args:
        deployment: `flow/name`; None means `sweep/aml`, or the form of the pool where nobody has deployed that.
        folder: The project's.

    Raises:
        ConfigError: The server that is in force, or the project, has no such deployment.
    """
    named = deployment or DEPLOYMENT
    if named.count("/") != 1:
        raise ConfigError(f"--deployment: {named!r} must be like flow/name, as `prefect deployment ls` shows it")
    at_server, note = _of_server(named, also_alone=deployment is None)
    name = named.partition("/")[2]
    variables = _of_project(name, folder)
    if at_server is not None:
        return at_server if at_server.deployed else replace(at_server, variables=variables or {})
    if variables is not None:
        return Found(f"{PREFECT_YAML}, deployment {name}", variables=variables, note=note)
    if deployment is not None:
        raise ConfigError(
            f"--deployment: {deployment!r} is neither on the Prefect server ({note}) nor in {folder / PREFECT_YAML}; "
            "name one that `prefect deployment ls` shows"
        )
    return Found("the defaults of the pool's form", note=note)


def _of_server(deployment: str, *, also_alone: bool) -> tuple[Found | None, str]:
    """Return what the server in force says, or why it says nothing.

    Args:
        deployment: Whose settings.
        also_alone: Whether its pool will do, by the name that it has in the project, where it is not deployed.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
    from prefect.settings import get_current_settings as current

    url = current().api.url
    if not url:  # empty counts as unset: Prefect would start a server of its own
        return None, "PREFECT_API_URL is not set"
    shown = hide_passwords(url)
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 10}),
            get_client(sync_client=True) as client,
        ):
            try:
                found = client.read_deployment_by_name(deployment)
            except ObjectNotFound:
                note = f"{shown} has no deployment {deployment}"
                pool = next((one for one in client.read_work_pools() if one.name == POOL), None) if also_alone else None
                if pool is None or pool.type != WORKER_TYPE:
                    return None, note
                return Found(f"pool {POOL} of {shown}", pool.base_job_template, note=note), ""
            pool = client.read_work_pool(found.work_pool_name) if found.work_pool_name else None
    except httpx.HTTPStatusError as error:
        return None, f"{shown} answers {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
        return None, f"{shown} does not answer ({plain(str(error)) or type(error).__name__})"
    if pool is None or pool.type != WORKER_TYPE:
        raise ConfigError(
            f"--deployment: {deployment} runs in the pool {found.work_pool_name or 'none'}, which is not of type "
            f"{WORKER_TYPE}; name one that is"
        )
    source = f"deployment {deployment} and pool {pool.name} of {shown}"
    return Found(source, pool.base_job_template, found.job_variables or {}, deployed=True), ""


def _of_project(name: str, folder: Path) -> dict[str, Any] | None:
    path = folder / PREFECT_YAML
    if not path.is_file():
        return None
    content = config_yaml.read_mapping(path)[0]
    for one in content.get("deployments") or ():
        if one.get("name") == name:
            return dict((one.get("work_pool") or {}).get("job_variables") or {})
    return None

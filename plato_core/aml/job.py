"""One command job of Azure ML: what it is to be, and the SDK's object for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plato_core.aml.codefolder import code_folder
from plato_core.aml.environments import Registered
from plato_core.aml.fields import JobFields
from plato_core.aml.jobsettings import QUIET, WORKER_PORTS
from plato_core.errors import ConfigError

if TYPE_CHECKING:
    from azure.ai.ml.entities import Environment
    from prefect.client.schemas.objects import FlowRun

COMMAND = "python -m plato_core.aml.entry"
OUTPUT = "sweeps"
_QUIET = {
    **QUIET,
    "TZ": "UTC",  # azureml-mlflow takes local time for UTC when it asks whether its token is still good
    "PYTHONUNBUFFERED": "1",
}
_NEVER = (
    "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_PASSWORD", "PREFECT_CLIENT_CUSTOM_HEADERS",
    "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip
_TAG = 1000  # AML's limit on a tag's value, in characters


class JobSpec(BaseModel):
    """A command job, before it is submitted. No secret is in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    display_name: str
    command: str
    code: str
    compute: str
    instance_count: int = Field(ge=1)
    environment: str
    launcher: Literal["single", "ray", "mpi"]
    ray_port: int
    ray_head_arguments: str | None
    ray_worker_arguments: str | None
    identity: Literal["compute", "managed", "user", "aml_token"]
    identity_client_id: str | None
    experiment: str
    storage: str
    shm_size: str
    timeout_seconds: int | None
    tags: dict[str, str]
    env: dict[str, str]


def job_name(flow_run: FlowRun, number: int | None = None) -> str:
    """Return the name of the job of a flow run's attempt.

    It is the same whoever computes it, so that a job submitted twice is one, and as long for every run and attempt:
    the SDK's download takes each job whose name begins with the one asked for.

    Args:
        flow_run: Whose.
        number: Of the attempt. By default how often the flow has begun; attempts in which it did not come on top.
    """
    return f"pf-{flow_run.id}-{flow_run.run_count if number is None else number:03d}"


def job_spec(
    fields: JobFields,
    *,
    name: str,
    display_name: str,
    command: str,
    experiment: str,
    tags: Mapping[str, str],
    env: Mapping[str, str | None],
) -> JobSpec:
    """Return what a job is to be, with the variables that tell its program of the nodes.

    Args:
        fields: Where and in what it runs.
        name: Of the job.
        display_name: Of the job, in Studio.
        command: Its program.
        experiment: That it belongs to.
        tags: Of the job; those of the fields come over them.
        env: Variables of the job; what is empty or None is left out.

    Raises:
        ConfigError: A setting cannot be; one line.
    """
    code = code_folder(Path(fields.code))
    if {fields.ray_port, fields.ray_port + 1} & set(WORKER_PORTS):
        raise ConfigError(
            f"ray_port: {fields.ray_port} comes into the way of Ray's workers; give one outside "
            f"{WORKER_PORTS[0]} to {WORKER_PORTS[-1]}"
        )
    for secret in _NEVER:
        if env.get(secret):
            raise ConfigError(f"env.{secret}: a secret would stand in the job's settings for all to read; remove it")
    launcher = fields.launcher if fields.instance_count > 1 else "single"
    contract = {
        "PLATO_AML_RAY_VERSION": version("ray"),
        "PLATO_AML_NODES": str(fields.instance_count),
        "PLATO_AML_LAUNCHER": launcher,
        "PLATO_AML_NODE_WAIT_S": str(fields.node_wait_s),
        # For Ray's processes where Azure ML starts them: each node has a copy of the code of its own, and its path
        # need not be that of the node with the driver.
        "PYTHONPATH": ":".join([".", *filter(None, [env.get("PYTHONPATH")])]),
        # With `mpi` the job starts Ray itself; Azure ML's own is told in the job's distribution.
        "PLATO_AML_RAY_PORT": str(fields.ray_port),
        "PLATO_AML_RAY_HEAD_ARGUMENTS": fields.ray_head_arguments or "",
        "PLATO_AML_RAY_WORKER_ARGUMENTS": fields.ray_worker_arguments or "",
    }
    return JobSpec(
        name=name,
        display_name=display_name,
        command=command,
        code=str(code),
        compute=fields.compute,
        instance_count=fields.instance_count,
        environment=fields.environment,
        launcher=launcher,
        ray_port=fields.ray_port,
        ray_head_arguments=fields.ray_head_arguments,
        ray_worker_arguments=fields.ray_worker_arguments,
        identity=fields.identity,
        identity_client_id=fields.identity_client_id,
        experiment=experiment,
        storage=fields.storage,
        shm_size=fields.shm_size,
        timeout_seconds=fields.timeout_seconds,
        tags={**tags, **fields.tags},
        env={variable: value for variable, value in {**_QUIET, **env, **contract}.items() if value},
    )


def command_job(spec: JobSpec) -> Any:
    """Return the SDK's object for a job.

    Raises:
        ConfigError: The environment's folder has no Dockerfile.
    """
    from azure.ai.ml import Output, command

    return command(
        name=spec.name,
        display_name=spec.display_name,
        experiment_name=spec.experiment,
        command=spec.command,
        code=spec.code,
        environment=_environment(spec),
        environment_variables=dict(spec.env),
        compute=spec.compute,
        instance_count=spec.instance_count,
        distribution=_distribution(spec),
        identity=_identity(spec),
        shm_size=spec.shm_size,
        timeout=spec.timeout_seconds,
        tags={name: value[:_TAG] for name, value in spec.tags.items()},
        outputs={OUTPUT: Output(type="uri_folder", path=spec.storage, mode="rw_mount")},
    )


def _environment(spec: JobSpec) -> str | Environment:
    from azure.ai.ml.entities import BuildContext, Environment

    named = spec.environment
    folder = Path(spec.code) / named
    if folder.is_dir():
        if not (folder / "Dockerfile").is_file():
            raise ConfigError(f"environment: there is no Dockerfile in {folder}")
        return Environment(build=BuildContext(path=str(folder), dockerfile_path="Dockerfile"))
    if re.fullmatch(r"azureml://\S+", named) or Registered.of(named):
        return named if named.startswith("azureml:") else f"azureml:{named}"
    raise ConfigError(f"environment: {named!r} is neither a folder in {spec.code} nor like name:version or name@latest")


def _distribution(spec: JobSpec) -> Any:
    if spec.launcher == "ray":
        from azure.ai.ml import RayDistribution

        return RayDistribution(
            port=spec.ray_port,
            include_dashboard=False,
            head_node_additional_args=spec.ray_head_arguments,
            worker_node_additional_args=spec.ray_worker_arguments,
        )
    if spec.launcher == "mpi":
        from azure.ai.ml import MpiDistribution

        return MpiDistribution(process_count_per_instance=1)
    return None


def _identity(spec: JobSpec) -> Any:
    from azure.ai.ml.entities import (
        AmlTokenConfiguration,
        ManagedIdentityConfiguration,
        UserIdentityConfiguration,
    )

    match spec.identity:
        case "managed":
            return ManagedIdentityConfiguration(client_id=spec.identity_client_id)
        case "user":
            return UserIdentityConfiguration()
        case "aml_token":
            return AmlTokenConfiguration()
    return None

"""One command job of Azure ML: what it is to be, and the SDK's object for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plato_core.errors import ConfigError

if TYPE_CHECKING:
    from azure.ai.ml.entities import Environment
    from prefect.client.schemas.objects import FlowRun

OUTPUT = "sweeps"
_REGISTERED = re.compile(r"azureml://\S+|(azureml:)?[\w.-]+[:@][\w.-]+")
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
    if _REGISTERED.fullmatch(named):
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

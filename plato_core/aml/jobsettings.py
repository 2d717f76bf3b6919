"""What the worker tells the program of a job, by environment variables; and what Azure ML tells each of its nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from plato_core.errors import ConfigError
from plato_core.report.text import hide_passwords
from plato_core.sweep.environment import ENVIRONMENT
from plato_core.sweep.protocol import SweepOrder

# The variable of a sweep for a flow elsewhere.
ORDER = "PLATO_AML_SWEEP"
# Ray gives its workers ports of this range; a head there comes into their way.
WORKER_PORTS = range(10002, 20000)
# Set for a job by its worker, so that Azure ML's own `ray start` has it too, and again by the job's program.
QUIET = {
    "DO_NOT_TRACK": "true",  # Prefect takes "1" too, MLflow only "true"
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    **{name: value for name, value in ENVIRONMENT.items() if name.startswith("RAY_USAGE_STATS_")},
    # Ray's own login between its nodes: all of them or none; a job's nodes see each other only.
    "RAY_AUTH_MODE": "disabled",
}


class NodeSettings(BaseSettings):
    """The contract between whoever submits a job and the job's own program: its nodes and their Ray."""

    model_config = SettingsConfigDict(env_ignore_empty=True, hide_input_in_errors=True, extra="ignore")

    ray_version: str = Field(validation_alias="PLATO_AML_RAY_VERSION", description="What the submitting side has")
    launcher: Literal["single", "ray", "mpi"] = Field(
        default="single",
        validation_alias="PLATO_AML_LAUNCHER",
        description="Who starts Ray: the flow on its one node, Azure ML, or this program by MPI ranks",
    )
    nodes: Annotated[int, Field(ge=1)] = Field(
        default=1, validation_alias="PLATO_AML_NODES", description="Nodes that the flow waits for"
    )
    node_wait_s: Annotated[float, Field(gt=0)] = Field(
        default=900.0, validation_alias="PLATO_AML_NODE_WAIT_S", description="How long it waits for them"
    )
    sweeps: str = Field(
        validation_alias=AliasChoices("AZURE_ML_OUTPUT_sweeps", "AZURE_ML_OUTPUT_SWEEPS"),
        description="Folder of sweeps, which every node sees and which outlives the job",
    )
    ray_port: Annotated[int, Field(ge=1024, le=65534)] = Field(
        default=6379,
        validation_alias="PLATO_AML_RAY_PORT",
        description="Port of Ray's head with `mpi`; the next one is for the word between the ranks",
    )
    ray_head_arguments: str = Field(default="", validation_alias="PLATO_AML_RAY_HEAD_ARGUMENTS")
    ray_worker_arguments: str = Field(default="", validation_alias="PLATO_AML_RAY_WORKER_ARGUMENTS")

    @classmethod
    def read(cls) -> Self:
        """Return what the environment says.

        Raises:
            ConfigError: A variable is missing or not possible; one line.
        """
        try:
            settings = cls()  # pyright: ignore[reportCallIssue]  # the environment fills it
        except ValidationError as error:
            raise ConfigError(_first(error.errors()[0])) from None
        if settings.ray_port in WORKER_PORTS or settings.ray_port + 1 in WORKER_PORTS:
            raise ConfigError(
                f"PLATO_AML_RAY_PORT: {settings.ray_port} comes into the way of Ray's workers; "
                f"give one, with the next one free too, outside {WORKER_PORTS[0]} to {WORKER_PORTS[-1]}"
            )
        return settings


class JobSettings(NodeSettings):
    """What a job is told that executes a flow run."""

    flow_run_id: UUID = Field(validation_alias="PREFECT__FLOW_RUN_ID", description="The flow run to execute")
    api_url: str = Field(validation_alias="PREFECT_API_URL", description="Prefect's API, as the job reaches it")
    api_key_secret: str | None = Field(
        default=None, validation_alias="PLATO_AML_API_KEY_SECRET", description="Key Vault secret of PREFECT_API_KEY"
    )
    api_auth_secret: str | None = Field(
        default=None,
        validation_alias="PLATO_AML_API_AUTH_SECRET",
        description="Key Vault secret of PREFECT_API_AUTH_STRING",
    )

    @property
    def shown_api_url(self) -> str:
        """The API's address, fit to be shown."""
        return hide_passwords(self.api_url)


class SweepSettings(NodeSettings):
    """What a job is told that runs a sweep for a flow elsewhere."""

    order: SweepOrder = Field(validation_alias=ORDER, description="The sweep, as JSON")


def read_settings(environ: Mapping[str, str] = os.environ) -> JobSettings | SweepSettings:
    """Return what the environment says a job is to do.

    Raises:
        ConfigError: A variable is missing or not possible; one line.
    """
    return SweepSettings.read() if environ.get(ORDER) else JobSettings.read()


class Rank(BaseSettings):
    """Which of the job's nodes this is. Azure ML's MPI gives each node one rank."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    number: Annotated[int, Field(ge=0)] = Field(
        validation_alias=AliasChoices("AZUREML_CR_NODE_RANK", "OMPI_COMM_WORLD_RANK"), description="0 has Ray's head"
    )
    master: str = Field(
        validation_alias=AliasChoices("AZ_BATCHAI_JOB_MASTER_NODE_IP", "AZ_BATCH_MASTER_NODE"),
        description="Address of rank 0",
    )
    own: str | None = Field(
        default=None,
        validation_alias="PLATO_NODE_IP",
        description="This node's address, where it has several networks; by default Ray finds it",
    )

    @classmethod
    def read(cls) -> Rank:
        """Return what the environment says.

        Raises:
            ConfigError: The job runs without MPI.
        """
        try:
            return cls()  # pyright: ignore[reportCallIssue]
        except ValidationError as error:
            raise ConfigError(
                f"{_first(error.errors()[0])}; PLATO_AML_LAUNCHER=mpi needs a job with Azure ML's MPI distribution"
            ) from None

    @property
    def head(self) -> str:
        """The head's address, without the port that `AZ_BATCH_MASTER_NODE` adds."""
        return self.master.partition(":")[0]


def _first(error: Any) -> str:
    name = str(error["loc"][0])
    value = os.environ.get(name)
    if value is None or error["type"] == "missing":
        return f"{name} is not set; whoever submits the job sets it (a work pool of type azure-ml; compute: aml)"
    return f"{name}: {value!r} is not possible: {error['msg'].lower()}"

"""The settings of a job of Azure ML, and those of a work pool of type `azure-ml` besides."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from plato_core.aml.workspace import Workspace
from plato_core.errors import ConfigError

SWEEPS = "azureml://datastores/workspaceblobstore/paths/plato/sweeps"


class JobFields(BaseModel):
    """Where and in what a job runs; each with what a form shows: a title, a description, examples."""

    workspace_config: str | None = Field(
        default=None,
        title="Workspace file",
        description="Path on the worker's machine of the `config.json` that the workspace's page in the Azure portal "
        "offers, or of a folder to look from. By default the worker's folder and its parents, with `.azureml/`.",
        examples=["/home/me/.azureml/config.json"],
    )
    subscription_id: str | None = Field(
        default=None,
        title="Subscription ID",
        description="Azure subscription of the workspace; with resource group and workspace in place of a file.",
        examples=["00000000-0000-0000-0000-000000000000"],
    )
    resource_group: str | None = Field(
        default=None, title="Resource group", description="Of the workspace.", examples=["rl-research"]
    )
    workspace: str | None = Field(
        default=None, title="Workspace", description="Name of the Azure ML workspace.", examples=["rl-workspace"]
    )
    compute: str = Field(
        default="cpu-cluster",
        title="Compute",
        description="Name of the compute cluster that runs the jobs.",
        examples=["cpu-cluster", "gpu-spot"],
    )
    instance_count: int = Field(
        default=1,
        ge=1,
        title="Nodes",
        description="Machines of one job. Ray makes one cluster of them; the sweep's trials use them all.",
        examples=[4],
    )
    environment: str = Field(
        default="deployments/aml",
        title="Environment",
        description="What the job runs in: `name:version`, `name@latest`, or a folder with a Dockerfile, from which "
        "the workspace builds it once.",
        examples=["plato:3", "plato@latest", "deployments/aml"],
    )
    launcher: Literal["ray", "mpi"] = Field(
        default="ray",
        title="Launcher",
        description="Who starts Ray on several nodes: Azure ML (`ray`), or this project on MPI ranks (`mpi`), for "
        "workspaces that refuse Ray's distribution. One node needs neither.",
    )
    ray_port: int = Field(
        default=6379,
        ge=1024,
        le=65534,
        title="Ray port",
        description="Port of Ray's head. Not 10002 to 19999, which its workers use.",
        examples=[6379],
    )
    ray_head_arguments: str | None = Field(
        default=None,
        title="Arguments of the head",
        description="Further arguments of `ray start` on the head.",
        examples=["--num-cpus=8"],
    )
    ray_worker_arguments: str | None = Field(
        default=None,
        title="Arguments of the workers",
        description="Further arguments of `ray start` on the other nodes.",
        examples=["--num-cpus=8"],
    )
    node_wait_s: int = Field(
        default=900,
        ge=1,
        title="Wait for nodes (seconds)",
        description="How long a started job waits until all of its nodes have joined Ray.",
        examples=[900],
    )
    identity: Literal["compute", "managed", "user", "aml_token"] = Field(
        default="compute",
        title="Identity",
        description="Whose rights the job has: the cluster's own settings (`compute`), a managed identity of the "
        "cluster (`managed`), the user's who starts the worker (`user`), or the run's token only (`aml_token`).",
    )
    identity_client_id: str | None = Field(
        default=None,
        title="Client ID of the identity",
        description="Which one, where the cluster has several managed identities.",
        examples=["00000000-0000-0000-0000-000000000000"],
    )
    code: str = Field(
        default=".",
        title="Code folder",
        description="Folder on the worker's machine that is uploaded and becomes the job's working folder. Files "
        "that `.amlignore` names stay behind; without one, those of `.gitignore`.",
        examples=[".", "/srv/plato"],
    )
    storage: str = Field(
        default=SWEEPS,
        title="Storage of sweeps",
        description="Folder of a datastore that every node sees and that outlives the job; a sweep goes on from it.",
        examples=[SWEEPS],
    )
    shm_size: str = Field(
        default="8g",
        title="Shared memory",
        description="Size of /dev/shm, which Ray's object store uses.",
        examples=["8g"],
    )
    timeout_seconds: int | None = Field(
        default=None,
        ge=1,
        title="Time limit (seconds)",
        description="Azure ML cancels a job that runs for longer. The sweep's own `time_budget_s` ends in order.",
        examples=[86400],
    )
    tags: dict[str, str] = Field(
        default_factory=dict, title="Tags", description="Of the jobs, in Studio.", examples=[{"team": "rl"}]
    )
    poll_interval_s: float = Field(
        default=10.0,
        gt=0,
        title="Poll interval (seconds)",
        description="How often a job is asked after.",
        examples=[10],
    )

    def find_workspace(self) -> Workspace:
        """Return the workspace that is meant.

        Raises:
            ConfigError: None is named, or only half of one.
        """
        parts = {
            "subscription_id": self.subscription_id,
            "resource_group": self.resource_group,
            "workspace": self.workspace,
        }
        named = {key: value for key, value in parts.items() if value}
        if named and self.workspace_config is None:
            missing = [key for key in parts if key not in named]
            if missing:
                raise ConfigError(f"{', '.join(missing)}: not set, but {', '.join(named)}; set all three or none")
            return Workspace(
                subscription_id=named["subscription_id"],
                resource_group=named["resource_group"],
                name=named["workspace"],
            )
        found = Workspace.find(self.workspace_config)
        if found is None:
            raise ConfigError(
                f"no Azure ML workspace: there is no config.json in {Path.cwd()} or its parents; download it from the "
                "workspace's page in the Azure portal, or set subscription_id, resource_group and workspace"
            )
        return found


class PoolFields(JobFields):
    """The settings of a work pool, which its deployments and runs may change."""

    experiment: str | None = Field(
        default=None,
        title="Experiment",
        description="Azure ML experiment of the jobs. By default the flow run's parameter `experiment_name`.",
        examples=["cartpole"],
    )
    api_url: str | None = Field(
        default=None,
        title="Prefect API URL",
        description="Address of the Prefect API as the job's nodes reach it. By default the worker's own, unless "
        "that is this machine's loopback address.",
        examples=["https://prefect.example.com/api"],
    )
    api_key_secret: str | None = Field(
        default=None,
        title="Secret of the API key",
        description="URL of the Azure Key Vault secret that holds PREFECT_API_KEY; the job reads it by its identity.",
        examples=["https://my-vault.vault.azure.net/secrets/prefect-api-key"],
    )
    api_auth_secret: str | None = Field(
        default=None,
        title="Secret of the auth string",
        description="URL of the Azure Key Vault secret that holds PREFECT_API_AUTH_STRING.",
        examples=["https://my-vault.vault.azure.net/secrets/prefect-auth-string"],
    )
    cancel_grace_s: float = Field(
        default=120.0,
        ge=0,
        title="Cancellation grace (seconds)",
        description="How long a running sweep may take to end in order, saved, before its job is cancelled.",
        examples=[120],
    )
    log_lines: int = Field(
        default=2000,
        ge=0,
        title="Lines of the job's log",
        description="So many are copied into the flow run's log at most; all of them are in Studio.",
        examples=[2000],
    )

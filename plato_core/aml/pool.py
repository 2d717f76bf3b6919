"""What can be set about a work pool of type `azure-ml`, and what a flow run makes of it: a job's specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect.settings import get_current_settings
from prefect.workers.base import BaseJobConfiguration, BaseVariables
from pydantic import PrivateAttr

from plato_core.aml.fields import PoolFields
from plato_core.aml.job import COMMAND, JobSpec, job_name, job_spec
from plato_core.errors import ConfigError
from plato_core.hosts import is_loopback

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

EXPERIMENT = "plato"
# Of the worker's own settings a job gets these; any other is about the worker's machine, or a secret.
_INHERITED = (
    "PREFECT_API_REQUEST_TIMEOUT", "PREFECT_API_ENABLE_HTTP2", "PREFECT_CLIENT_MAX_RETRIES",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES", "PREFECT_CLOUD_API_URL", "PREFECT_CLOUD_UI_URL", "PREFECT_UI_URL",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "PREFECT_LOGGING_LEVEL", "PREFECT_LOGGING_TO_API_ENABLED",
    "PREFECT_DEBUG_MODE",
)  # fmt: skip
# The run's own marks, which Prefect gives each job: ids and names.
_MARKS = "PREFECT__"
# But for the worker's: two workers that submit one job must ask for the same.
_WORKERS_MARKS = ("PREFECT__WORKER_ID", "PREFECT__WORKER_NAME")
# What belongs into a key vault, and the variable that tells the job where it is.
_SECRETS = {
    "PREFECT_API_KEY": ("api_key_secret", "PLATO_AML_API_KEY_SECRET"),
    "PREFECT_API_AUTH_STRING": ("api_auth_secret", "PLATO_AML_API_AUTH_SECRET"),
}


class AzureMLVariables(PoolFields, BaseVariables):
    """The form of a work pool, a deployment or a run."""


class AzureMLJobConfiguration(PoolFields, BaseJobConfiguration):
    """A flow run's settings, filled in."""

    _api_url_given: bool = PrivateAttr(default=False)

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: Flow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Add what the run needs. It refuses nothing: a run is cancelled by its configuration too."""
        given = {name: value for name, value in self.env.items() if value is not None}
        self.command = self.command or COMMAND
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)
        kept = {name: value for name, value in self.env.items() if _of_the_run(name)}
        self._api_url_given = bool(self.api_url or given.get("PREFECT_API_URL"))
        url = self.api_url or given.get("PREFECT_API_URL") or get_current_settings().api.url or ""
        self.env = {**kept, **given, "PREFECT_API_URL": url}
        if self.experiment is None:
            asked = (flow_run.parameters or {}).get("experiment_name")
            self.experiment = asked if isinstance(asked, str) and asked else EXPERIMENT

    def job_spec(self, flow_run: FlowRun) -> JobSpec:
        """Return what the job is to be.

        Raises:
            ConfigError: A setting cannot be; one line.
        """
        self._check_api()
        secrets = {variable: getattr(self, field) or "" for field, variable in _SECRETS.values()}
        return job_spec(
            self,
            name=job_name(flow_run),
            display_name=self.name or flow_run.name,
            command=self.command or COMMAND,
            experiment=self.experiment or EXPERIMENT,
            tags=self._run_tags(),
            env=self.env | {"PREFECT__FLOW_RUN_ID": str(flow_run.id), **secrets},
        )

    def _run_tags(self) -> dict[str, str]:
        named = {
            "prefect.flow_run_id": "prefect.io/flow-run-id",
            "prefect.flow_run": "prefect.io/flow-run-name",
            "prefect.deployment": "prefect.io/deployment-name",
        }
        return {tag: self.labels[label] for tag, label in named.items() if label in self.labels}

    def _check_api(self) -> None:
        url = self.env.get("PREFECT_API_URL") or ""
        if not self._api_url_given and is_loopback(urlsplit(url).hostname or ""):
            raise ConfigError(
                f"PREFECT_API_URL: the worker's own, {url or 'none'}, leads to this machine only, and the job runs on "
                "another; set api_url of the pool to an address of the Prefect server that the compute can reach"
            )
        if urlsplit(url).password:
            raise ConfigError(
                "PREFECT_API_URL: a password in it would stand in the job's settings for all to read; put it as "
                "PREFECT_API_AUTH_STRING into a key vault and set api_auth_secret"
            )
        api = get_current_settings().api
        held = {"PREFECT_API_KEY": api.key, "PREFECT_API_AUTH_STRING": api.auth_string}
        for name, (field, _) in _SECRETS.items():
            if self.env.get(name):
                raise ConfigError(
                    f"env.{name}: it would stand in the job's settings for all to read; store it in an Azure key "
                    f"vault and set {field} to the secret's URL"
                )
            if held[name] and not getattr(self, field):
                raise ConfigError(
                    f"{name}: the worker needs one for the Prefect API and so will the job; store it in an Azure key "
                    f"vault and set {field} of the pool to the secret's URL"
                )


def _of_the_run(name: str) -> bool:
    return name in _INHERITED or (name.startswith(_MARKS) and name not in _WORKERS_MARKS)


def template() -> dict[str, Any]:
    """Return what a new pool is created with: the form, and how it fills the configuration."""
    from plato_core.aml.worker import AzureMLWorker

    return AzureMLWorker.get_default_base_job_template()

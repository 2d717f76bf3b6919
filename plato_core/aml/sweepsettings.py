"""The settings of a job that runs only a sweep: `compute: aml` and `job_variables` of a sweep's config."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from plato_core.aml.fields import JobFields
from plato_core.config import SweepConfig
from plato_core.config_errors import config_error
from plato_core.config_store import is_of_this_machine
from plato_core.errors import ConfigError


class SweepJobFields(JobFields):
    """What can stand in `job_variables`."""

    model_config = ConfigDict(extra="forbid")

    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the job; no secrets.")


def settings_of(config: SweepConfig) -> SweepJobFields:
    """Return the settings of a sweep's job.

    Raises:
        ConfigError: One is not known or not possible; one line.
    """
    given: dict[str, Any] = {name: value for name, value in config.job_variables.items() if value is not None}
    try:
        return SweepJobFields.model_validate(given)
    except ValidationError as error:
        raise config_error(error, SweepJobFields, lambda path: ".".join(("job_variables", *path))) from None


def tracked(config: SweepConfig) -> SweepConfig:
    """Return a sweep's config with the store that it is tracked in: that of a job is its workspace unless it says so.

    Raises:
        ConfigError: A setting is not possible, no workspace is found, or the store is one of this machine.
        AmlError: Nobody is signed in, or Azure knows no such workspace.
    """
    if config.compute != "aml":
        return config
    settings = settings_of(config)
    if config.tracking_uri is None:
        from plato_core.aml.clouds import tracking_uri_of
        from plato_core.tracking.azure import canonical

        return config.model_copy(update={"tracking_uri": canonical(tracking_uri_of(settings.find_workspace()))})
    if is_of_this_machine(config.tracking_uri):
        raise ConfigError(
            f"tracking_uri: {config.tracking_uri!r} is on this machine, and the sweep trains in an Azure ML job; leave "
            "it out, which means the workspace, or give a store that the job reaches"
        )
    return config


def check_job(config: SweepConfig) -> None:
    """Check what can be known of a sweep's job before it is paid for: its settings, its code, its cluster.

    The cluster of a sweep that goes on is asked for with its next job: the one that it has may only be followed.

    Raises:
        ConfigError: One is not as it must be; one line.
        AmlError: Azure ML cannot be asked.
    """
    from plato_core.aml.client import JobClient
    from plato_core.aml.job import COMMAND, command_job, job_spec

    settings = settings_of(config)
    try:
        workspace = settings.find_workspace()
        spec = job_spec(
            settings, name="ps-", display_name="", command=COMMAND, experiment=config.experiment_name, tags={},
            env=settings.env,
        )  # fmt: skip
        command_job(spec)
        if config.resume is None:
            JobClient(workspace).check_compute(settings.compute, settings.instance_count)
    except ConfigError as error:
        raise ConfigError(f"job_variables: {error}") from None

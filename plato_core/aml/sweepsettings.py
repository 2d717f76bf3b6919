"""The settings of a job that runs only a sweep: `compute: aml` and `job_variables` of a sweep's config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, ValidationError

from plato_core.aml.fields import JobFields
from plato_core.config import SweepConfig
from plato_core.config_errors import config_error
from plato_core.config_store import is_of_this_machine
from plato_core.errors import ConfigError

if TYPE_CHECKING:
    from plato_core.aml.job import JobSpec


class SweepJobFields(JobFields):
    """What can stand in `job_variables`."""

    model_config = ConfigDict(extra="forbid")

    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the job; no secrets.")


def settings_of(config: SweepConfig) -> SweepJobFields:
    """Return the settings of a sweep's job.

    Raises:
        ConfigError: One is not known or not possible; one line.
    """
    return fields_of(config.job_variables)


def fields_of(job_variables: Mapping[str, Any]) -> SweepJobFields:
    """Return the settings that job variables make; those that are None are as if not given.

    Raises:
        ConfigError: One is not known or not possible; one line.
    """
    given = {name: value for name, value in job_variables.items() if value is not None}
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


def foreseen(settings: SweepJobFields, experiment: str) -> JobSpec:
    """Return what a sweep's job would be, as far as it is known before the sweep; makes and asks nothing.

    Raises:
        ConfigError: A setting cannot be; one line.
    """
    from plato_core.aml.job import COMMAND, job_spec

    with _of_job_variables():
        return job_spec(
            settings, name="ps-", display_name="", command=COMMAND, experiment=experiment, tags={}, env=settings.env
        )


def check_job(config: SweepConfig) -> None:
    """Check what can be known of a sweep's job before it is paid for: its settings, code, cluster and environment.

    The last three are looked at with the next job of a sweep that goes on: the one that it has may only be followed.

    Raises:
        ConfigError: One is not as it must be; one line.
        AmlError: Azure ML cannot be asked.
    """
    from plato_core.aml.client import JobClient
    from plato_core.aml.codefolder import CodeFolder
    from plato_core.aml.job import command_job

    settings = settings_of(config)
    spec = foreseen(settings, config.experiment_name)
    with _of_job_variables():
        workspace = settings.find_workspace()
        command_job(spec)
        if config.resume is None:
            CodeFolder.read(Path(spec.code))
            JobClient(workspace).check(spec)


@contextmanager
def _of_job_variables() -> Iterator[None]:
    """Has an error say which setting of a sweep it is about: that of its job."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"job_variables: {error}") from None

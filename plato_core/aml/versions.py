"""Whether a job's environment has the Ray that the job was submitted with: a sweep's files are of one version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from plato_core.errors import ConfigError

WAY_OUT = (
    "build the environment again (`az ml environment create --file deployments/aml/environment.yaml`, or the pool's "
    "environment set to the folder deployments/aml), or install the same version where the worker runs"
)


def check_ray(submitted: str) -> None:
    """Checks Ray's version here against that of the side that submitted the job.

    Raises:
        ConfigError: They differ, or there is no Ray here.
    """
    try:
        here = version("ray")
    except PackageNotFoundError:
        here = None
    if here != submitted:
        found = "no Ray" if here is None else f"Ray {here}"
        raise ConfigError(f"the job's environment has {found}, and the submitting side has {submitted}; {WAY_OUT}")

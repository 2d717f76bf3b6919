"""The few things that a worker asks of an Azure ML workspace. Every call blocks, some for minutes: use threads.

A job is submitted under a name of its own; asking again gives the same job.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plato_core.aml.clouds import workspace_refused
from plato_core.aml.codefolder import CodeFolder
from plato_core.aml.connection import Connection
from plato_core.aml.environments import MAKE, Registered
from plato_core.aml.job import JobSpec, command_job
from plato_core.aml.refusal import translated
from plato_core.errors import AmlError, ConfigError
from plato_core.report.text import plain

TERMINAL = frozenset({"Completed", "Failed", "Canceled"})


@dataclass(frozen=True)
class JobState:
    """A job as Azure ML has it.

    Attributes:
        name: Its name, which is its run's id too.
        status: Azure ML's word: `Queued`, `Preparing`, `Running`, `Completed`...
        experiment: The experiment that it belongs to.
        studio_url: Its page.
    """

    name: str
    status: str
    experiment: str
    studio_url: str

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self.status in TERMINAL


@dataclass(frozen=True)
class Failure:
    """What Azure ML says about a job that ended badly."""

    code: str = ""
    message: str = ""


class JobClient(Connection):
    """A workspace's jobs."""

    def check(self, spec: JobSpec) -> None:
        """Refuse a job that Azure ML would refuse with fewer words, or only when it is queued.

        Raises:
            ConfigError: Its cluster is not there or is too small, or its environment is not there.
            AmlError: Azure ML cannot be asked.
        """
        self._check_compute(spec.compute, spec.instance_count)
        self._check_environment(spec)

    def _check_compute(self, name: str, instance_count: int) -> None:
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError

        try:
            compute = self._call(lambda: self._ml.compute.get(name), keep=(ResourceNotFoundError, HttpResponseError))
        except ResourceNotFoundError:
            there = self._computes() or "none"
            raise ConfigError(
                f"compute: workspace {self.workspace.name} has no compute {name!r}; it has: {there}"
            ) from None
        except ClientAuthenticationError as error:
            raise translated(error) from None
        except HttpResponseError as error:
            if error.status_code == 403:  # may submit jobs, but not look at computes
                return
            raise translated(error) from None
        most = getattr(compute, "max_instances", None)
        if most is not None and instance_count > most:
            raise ConfigError(
                f"instance_count: {instance_count} nodes, but compute {name!r} grows to {most} at most; "
                "ask for fewer or raise the cluster's maximum"
            )

    def _computes(self) -> str:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            found = self._call(lambda: list(self._ml.compute.list()), keep=(ResourceNotFoundError,))
        except ResourceNotFoundError:  # none of its computes is there, as it is not itself
            raise AmlError(workspace_refused(self.workspace, 404)) from None
        return ", ".join(sorted(one.name or "" for one in found))

    def _check_environment(self, spec: JobSpec) -> None:
        from azure.core.exceptions import HttpResponseError

        named = None if (Path(spec.code) / spec.environment).is_dir() else Registered.of(spec.environment)
        if named is None:
            return
        try:
            if self._call(lambda: named.find(self._ml), keep=(HttpResponseError,)) is not None:
                return
            there = self._call(lambda: named.others(self._ml))
        except HttpResponseError as error:
            if error.status_code == 403:  # may submit jobs, but not look at environments
                return
            raise translated(error) from None
        raise ConfigError(
            f"environment: workspace {self.workspace.name} has no environment {str(named)!r}; it has {there}; {MAKE}"
        )

    def find(self, name: str) -> JobState | None:
        """Return a job, or None if there is none of that name.

        Raises:
            AmlError: Azure ML cannot be asked.
        """
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return _state(self._call(lambda: self._ml.jobs.get(name), keep=(ResourceNotFoundError,)))
        except ResourceNotFoundError:
            return None

    def submit(self, spec: JobSpec) -> JobState:
        """Upload the code and create the job.

        Raises:
            ConfigError: A setting cannot be.
            AmlError: Azure ML refuses or cannot be asked.
        """
        job = command_job(spec)
        with CodeFolder.read(Path(spec.code)).gathered() as code, _silenced():
            job.code = str(code)
            return _state(self._call(lambda: self._ml.jobs.create_or_update(job)))

    def cancel(self, name: str) -> None:
        """Ask that a job is cancelled; one that has ended stays as it is.

        Raises:
            AmlError: Azure ML cannot be asked.
        """
        from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

        def ask() -> None:
            self._ml.jobs.begin_cancel(name, polling=False)  # that it is cancelled is seen by its status

        try:
            self._call(ask, keep=(ResourceNotFoundError, HttpResponseError))
        except ResourceNotFoundError:
            return
        except HttpResponseError as error:
            state = self.find(name)
            if state is not None and not state.ended and state.status != "CancelRequested":
                raise translated(error) from None

    def failure(self, name: str) -> Failure:
        """Return what Azure ML says about a job's end.

        Raises:
            AmlError: Azure ML cannot be asked.
        """
        details = self.history(f"/runs/{name}/details")
        error = (details or {}).get("error") or {}
        found: dict[str, Any] = error.get("error") or {}
        code, message = str(found.get("code") or ""), str(found.get("message") or "")
        inner = found.get("innerError") or {}
        while isinstance(inner, dict) and inner.get("code"):
            code, inner = f"{code}/{inner['code']}", inner.get("innerError")
        return Failure(code, plain(message))


class _NotFrom:
    """Standard error without what one thread writes there."""

    def __init__(self, thread: int, inner: Any) -> None:
        self._thread, self._inner = thread, inner

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._inner.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _silenced() -> contextlib.AbstractContextManager[Any]:
    """Keeps off the terminal what the SDK prints for an upload: colours and blank lines, `show_progress` or not."""
    return contextlib.redirect_stderr(_NotFrom(threading.get_ident(), sys.stderr))  # type: ignore[type-var]


def _state(job: Any) -> JobState:
    services = job.services or {}
    studio = services.get("Studio")
    return JobState(
        name=job.name,
        status=str(getattr(job.status, "value", job.status)),
        experiment=job.experiment_name or "",
        studio_url=(getattr(studio, "endpoint", None) or "") if studio is not None else "",
    )

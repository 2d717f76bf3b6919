"""The few things that a worker asks of an Azure ML workspace. Every call blocks, some for minutes: use threads.

azure-core tries again by itself what a busy service refuses (429, 5xx) and what a broken connection ends, so an error
from here has lasted for some seconds. A job is submitted under a name of its own; asking again gives the same job.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from plato_core.aml.clouds import current_cloud, tracking_uri_of, workspace_refused
from plato_core.aml.credentials import TIMEOUTS, RenewableCredential, signed_in
from plato_core.aml.environments import MAKE, Registered
from plato_core.aml.job import JobSpec, command_job
from plato_core.aml.refusal import translated
from plato_core.aml.workspace import Workspace
from plato_core.errors import AmlError, ConfigError
from plato_core.report.text import plain

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core import PipelineClient

T = TypeVar("T")
# A token that was refused may be kept by so many of the SDK's clients that one question goes through, each by itself.
_STALE_TOKENS = 5
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


class JobClient:
    """A workspace's jobs.

    Args:
        workspace: Whose.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()

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
        with _silenced():
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

    def history(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any] | None:
        """Ask the workspace's run history, and return its answer; None for what it does not know.

        Raises:
            AmlError: It cannot be asked.
        """
        from azure.core.exceptions import ClientAuthenticationError
        from azure.core.rest import HttpRequest

        request = HttpRequest("GET", f"{self._history_url}{path}", params=query or {})

        def ask() -> dict[str, Any] | None:
            response = self._rest.send_request(request)
            if response.status_code == 401:
                raise ClientAuthenticationError(response=response)
            if response.status_code == 404:
                return None
            response.raise_for_status()
            return response.json()

        return self._call(ask)

    def read(self, url: str, offset: int, most: int) -> bytes | None:
        """Return a part of a blob, by an address that carries its own right to be read.

        None means that the blob has no such byte, being shorter; an empty part that there is no blob yet.

        Args:
            url: Of the blob, with its signature.
            offset: The first byte.
            most: So many bytes at most.

        Raises:
            AmlError: It cannot be read.
        """
        from azure.core.rest import HttpRequest

        headers = {"Range": f"bytes={offset}-{offset + most - 1}", "x-ms-version": "2021-08-06"}
        request = HttpRequest("GET", url, headers=headers)
        response = self._call(lambda: self._plain.send_request(request))
        if response.status_code == 416:
            return None
        if response.status_code == 404:
            return b""
        self._call(response.raise_for_status)
        content = response.read()
        return content if response.status_code == 206 else content[offset : offset + most] or None

    def size(self, url: str) -> int:
        """Return how long a blob is, 0 if there is none; see `read`."""
        from azure.core.rest import HttpRequest

        request = HttpRequest("HEAD", url, headers={"x-ms-version": "2021-08-06"})
        response = self._call(lambda: self._plain.send_request(request))
        if response.status_code == 404:
            return 0
        self._call(response.raise_for_status)
        return int(response.headers.get("Content-Length") or 0)

    @cached_property
    def _credential(self) -> RenewableCredential:
        return signed_in()

    @cached_property
    def _client(self) -> MLClient:
        # Without a progress bar the SDK looks at no upload of a file that failed, and waits for it for ever
        # (azure-ai-ml 1.35, `upload_directory`). So it has one, that shows nothing.
        os.environ.setdefault("TQDM_DISABLE", "1")
        from plato_core.aml.transport import make_ml_client

        return make_ml_client(self._credential, self.workspace, show_progress=True)

    @property
    def _ml(self) -> MLClient:
        with self._lock:  # threads that come together make one client
            return self._client

    @cached_property
    def _history_url(self) -> str:
        region = urlsplit(tracking_uri_of(self.workspace)).netloc
        return f"https://{region}/history/v1.0{self.workspace.resource_id}"

    @cached_property
    def _rest(self) -> PipelineClient:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy

        from plato_core.aml.transport import PromptTransport

        cloud = current_cloud()
        policies = [RetryPolicy(), BearerTokenCredentialPolicy(self._credential, cloud.scope)]
        transport = PromptTransport(**TIMEOUTS)
        return PipelineClient(f"https://{cloud.management}", policies=policies, transport=transport)

    @cached_property
    def _plain(self) -> PipelineClient:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import RetryPolicy

        from plato_core.aml.transport import PromptTransport

        transport = PromptTransport(**TIMEOUTS)
        return PipelineClient("https://blob.core.windows.net", policies=[RetryPolicy()], transport=transport)

    def _call(self, ask: Callable[[], T], keep: tuple[type[Exception], ...] = ()) -> T:
        """Return what Azure answers; of its errors those to keep as they are, others as one of ours."""
        from azure.ai.ml.exceptions import MlException
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            for number in range(_STALE_TOKENS):
                try:
                    return ask()
                except ClientAuthenticationError as error:
                    if error.status_code != 401:
                        raise
                    if number == 0:
                        self._credential.renew()  # a token that was taken back before its end, as of a rotated secret
            return ask()
        except keep:
            raise
        except (AzureError, MlException, OSError) as error:
            raise translated(error) from None


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

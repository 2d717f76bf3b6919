"""An Azure ML workspace as a tracking store: its address, the sign-in of MLflow's plugin, whether it can be used.

The plugin (azureml-mlflow) has two ways to sign in. In a job it takes the job's token from the environment and renews
it by itself. Elsewhere it would end at a browser window or a device code, which nobody answers in the middle of a
night; so there it is given the credential of :mod:`plato_core.aml.credentials`, which asks nobody.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import stamina

from plato_core.aml.clouds import UNREACHED, cloud_of, tracking_uri_of, workspace_refused
from plato_core.aml.credentials import hush
from plato_core.aml.jobrun import JobRun
from plato_core.aml.workspace import Workspace
from plato_core.errors import ConfigError, PlatoError, TrackingError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from plato_core.aml.credentials import RenewableCredential

P = ParamSpec("P")
T = TypeVar("T")

# A token is asked for anew when it is valid for so many seconds only.
_SPARE_S = 300.0
_ANSWERS_WITHIN_S = "30"
_OF_A_TOKEN = re.compile("(Invalid|Expired)AuthenticationToken|AuthenticationFailed")
_BARE = ("azureml", "azureml:", "azureml://")
_REFUSED = (401, 403, 404)
_WAY_OUT = "give azureml://... as the workspace's page in the Azure portal shows it, or the path of its config.json"

_lock = threading.RLock()
_ready: dict[str, _Kept] = {}
_reached: set[str] = set()


def is_azure(uri: str) -> bool:
    """Say whether a tracking URI is that of a workspace."""
    return uri.startswith("azureml:")


def names_config(uri: str) -> bool:
    """Say whether what stands for a tracking URI is a workspace's `config.json`, or asks to look for one."""
    return uri in _BARE or ("://" not in uri and uri.endswith(".json"))


def uri_of_config(named: str) -> str:
    """Return the tracking URI of a workspace that is named by its `config.json`. Asks Azure for the region.

    Args:
        named: The file; or `azureml`, to look for it as Azure's tools do.

    Raises:
        ConfigError: There is no such file, or it names no workspace.
        AmlError: Nobody is signed in, or Azure knows no such workspace.
    """
    workspace = Workspace.find(None if named in _BARE else Path(named))
    if workspace is None:
        raise ConfigError(f"tracking_uri: {named!r}, but no config.json lies here or in a parent folder; {_WAY_OUT}")
    return canonical(tracking_uri_of(workspace))


def canonical(uri: str) -> str:
    """Return the one form of a workspace's URI under which the plugin of MLflow 3 keeps it.

    Raises:
        ConfigError: It names no workspace.
    """
    parts = urlsplit(uri)
    if not parts.netloc:
        raise ConfigError(f"tracking_uri: {uri!r} names no host; {_WAY_OUT}")
    return f"azureml://{parts.netloc}/mlflow/v2.0{Workspace.of(uri, 'tracking_uri').resource_id}"


def prepare(uri: str) -> str:
    """Have MLflow's plugin sign in without asking anybody, once a process; makes no request.

    Returns:
        The URI to make a client with.

    Raises:
        ConfigError: It names no workspace.
    """
    # Else the plugin looks the cloud up, on a machine that may not be let out to where it looks.
    os.environ.setdefault("AZUREML_CURRENT_CLOUD", cloud_of(uri).name)
    # Else a question about an artifact that is never answered is waited for five minutes.
    os.environ.setdefault(
        "AZUREML_HTTP_REQUEST_TIMEOUT", os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", _ANSWERS_WITHIN_S)
    )
    hush()
    logging.getLogger("azureml").setLevel(logging.ERROR)
    if JobRun.tracked_in(uri) is not None and "MLFLOW_TRACKING_TOKEN" in os.environ:
        return uri.partition("?")[0]
    target = canonical(uri)
    with _lock:
        if target not in _ready:
            from azureml.mlflow import get_mlflow_tracking_uri_v2

            from plato_core.aml.credentials import credential

            workspace = Workspace.of(target)
            kept = _Kept(credential())
            scope = {
                "subscription_id": workspace.subscription_id,
                "resource_group_name": workspace.resource_group,
                "workspace_name": workspace.name,
                "host_url": f"https://{urlsplit(target).netloc}",
                "auth": kept,
            }
            target = get_mlflow_tracking_uri_v2(SimpleNamespace(ml_flow_tracking_uri=target), scope)
            _ready[target] = kept
    return target


def renew_requests(client: MlflowClient) -> None:
    """Have each request of a client whose token is refused sign in anew and be sent once more; then the error stands.

    A token can be taken back before its end, as that of a rotated secret. In a job it is the plugin's own affair.

    Args:
        client: Made with what `prepare` returned.
    """
    store: Any = client._tracking_client.store  # one for all clients of an address
    with _lock:
        kept = _ready.get(client.tracking_uri)
        if kept is not None and not hasattr(store._call_endpoint, "__wrapped__"):
            store._call_endpoint = kept.renewing(store._call_endpoint)


def renew_transfers(repository: ArtifactRepository, uri: str) -> None:
    """Do what `renew_requests` does, for the artifacts of a run.

    Args:
        repository: Of the run.
        uri: What `prepare` returned.
    """
    if (kept := _ready.get(uri)) is not None:
        for name in ("log_artifact", "list_artifacts", "_download_file"):
            setattr(repository, name, kept.renewing(getattr(repository, name)))


def check(uri: str) -> None:
    """See whether a workspace lets us in, once a process. Creates nothing.

    Raises:
        ConfigError: The URI names no workspace.
        AmlError: Nobody is signed in.
        TrackingError: The workspace is not there, does not let us in, or does not answer.
    """
    target = prepare(uri)
    with _lock:
        if target in _reached:
            return
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    workspace = Workspace.of(target)
    try:
        if JobRun.tracked_in(uri) is None:
            from plato_core.aml.credentials import signed_in

            signed_in(cloud_of(uri).scope)
        # An answer that was cut off is asked for again, which MLflow does not do by itself.
        for attempt in stamina.retry_context(on=_may_pass, attempts=3, timeout=30.0):
            with attempt:
                MlflowClient(tracking_uri=target).search_experiments(max_results=1)
    except PlatoError:
        raise
    except MlflowException as error:
        status = _status(str(error)) or error.get_http_status_code()
        known = status in _REFUSED
        raise TrackingError(workspace_refused(workspace, status) if known else _unreached(workspace, error)) from error
    except Exception as error:  # the plugin's own, azure.core's and requests': they have no common base
        status = getattr(error, "status_code", None)
        if status in _REFUSED:
            raise TrackingError(workspace_refused(workspace, status)) from error
        raise TrackingError(_unreached(workspace, error)) from error
    with _lock:
        _reached.add(target)


def _may_pass(error: Exception) -> bool:
    from plato_core.tracking.artifacts import is_transient

    # The plugin has a refusal's status in its text alone.
    return is_transient(error) and _status(str(error)) not in _REFUSED


@contextmanager
def in_force(uri: str) -> Iterator[None]:
    """Make a workspace MLflow's global store meanwhile: the plugin makes artifact repositories of no other."""
    import mlflow
    from mlflow.tracking import is_tracking_uri_set

    name = "MLFLOW_TRACKING_URI"
    with _lock:
        variable = os.environ.get(name)
        before = mlflow.get_tracking_uri() if is_tracking_uri_set() else None
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None if before == variable else before)  # pyright: ignore[reportArgumentType]
            if variable is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = variable


def studio_page(uri: str, run_id: str) -> str | None:
    """Return the address of a run's page in Azure ML Studio; None if the URI names no workspace."""
    try:
        workspace = Workspace.of(uri)
    except ConfigError:
        return None
    wsid = (
        f"/subscriptions/{workspace.subscription_id}/resourcegroups/{workspace.resource_group}"
        f"/workspaces/{workspace.name}"
    )
    return f"https://{cloud_of(uri).studio}/runs/{run_id}?wsid={wsid}"


class _Kept:
    """A credential whose token is kept until shortly before its end: the plugin asks at every request.

    Some credentials start a program each time, such as `az`.
    """

    def __init__(self, inner: RenewableCredential) -> None:
        self._inner = inner
        self._tokens: dict[tuple[str, ...], AccessToken] = {}
        self._renewals = 0
        self._lock = threading.Lock()

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        with self._lock:
            token = self._tokens.get(scopes)
            if token is None or token.expires_on - time.time() < _SPARE_S:
                token = self._tokens[scopes] = self._inner.get_token(*scopes, **options)
            return token

    def renewing(self, ask: Callable[P, T]) -> Callable[P, T]:
        """Return a function that does what `ask` does, and once more with new tokens where they are refused."""

        @functools.wraps(ask)
        def asking(*args: P.args, **kwargs: P.kwargs) -> T:
            renewals = self._renewals
            try:
                return ask(*args, **kwargs)
            except Exception as error:
                if not _token_refused(error):
                    raise
            self._renew(renewals)
            return ask(*args, **kwargs)

        return asking

    def _renew(self, seen: int) -> None:
        with self._lock:
            if self._renewals == seen:  # else another thread has done so since
                self._inner.renew()
                self._tokens.clear()
                self._renewals += 1


def _token_refused(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):  # an answer in Azure's own words has no code of MLflow's
        return error.get_http_status_code() == 401 or _OF_A_TOKEN.search(str(error)) is not None
    return getattr(error, "status_code", None) == 401


def _shown(workspace: Workspace) -> str:
    return f"Azure ML workspace {workspace}"


def _unreached(workspace: Workspace, error: BaseException) -> str:
    return f"{_shown(workspace)} does not answer ({_cause(error)}); {UNREACHED}"


def _status(text: str) -> int | None:
    found = re.search(r"error code (\d{3})", text)
    return int(found.group(1)) if found else None


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]

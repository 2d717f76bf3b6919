"""How this project talks to MLflow: the environment it sets, the client it makes, the errors it translates.

Only :func:`make_client` imports MLflow; the rest answers at once.
"""

import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from plato_core.errors import TrackingError
from plato_core.report.text import hide_passwords
from plato_core.tracking.azure import check as check_workspace
from plato_core.tracking.azure import is_azure, prepare, renew_requests
from plato_core.tracking.database import SQLITE, make_database

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REACH_TIMEOUT_S = 5.0
_repeats = threading.Lock()

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # MLflow's own retries block for minutes inside one call and cannot be interrupted. Every caller here
    # either retries by itself (the writer) or wants the answer soon (the flow's tasks, with a person
    # waiting).
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def prepare_environment() -> None:
    """Set what MLflow reads from the environment, except what the user has set; the one place for it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def redact(uri: str) -> str:
    """The URI without its password, fit for messages and files."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))


def absolute_uri(uri: str) -> str:
    """The URI with a relative SQLite file made absolute, so that it means the same in every process."""
    path = sqlite_path(uri)
    return uri if path is None else f"{SQLITE}{path}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a ``sqlite:///`` URI as an absolute path, None for any other URI."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def check_reachable(uri: str, timeout_s: float = REACH_TIMEOUT_S) -> None:
    """See in seconds, not minutes, whether a tracking store answers. Creates nothing, imports nothing heavy.

    A server counts as reachable when it answers HTTP at all; a SQLite file when its folder can be written to; an
    Azure ML workspace (whose SDK is heavy) when it lets us in. Other stores are left to their own clients.

    Raises:
        TrackingError: The store does not answer; says which, why and the way out.
    """
    path = sqlite_path(uri)
    if path is not None:
        if path.is_dir() or not path.parent.is_dir():
            kind = "is a folder" if path.is_dir() else f"cannot be made: there is no folder {path.parent}"
            raise TrackingError(f"tracking store {uri}: {path} {kind}; name a file in a folder that exists")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise TrackingError(f"tracking store {uri}: no permission to write {path}; choose another --tracking-uri")
        return
    if is_azure(uri):
        check_workspace(uri)
        return
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    probe = urlunsplit((parts.scheme, host, parts.path.rstrip("/") + "/health", "", ""))
    try:
        urllib.request.urlopen(probe, timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return  # it answered; whether it lets us in is seen at the first real call
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLError):
            return  # it answered; which certificates to trust is settled elsewhere for MLflow's client
        raise TrackingError(
            f"tracking server {redact(uri)} does not answer ({reason}); start it, "
            "or name another one with --tracking-uri or MLFLOW_TRACKING_URI"
        ) from error


def make_client(uri: str, *, check: bool = True) -> "MlflowClient":
    """A client of the store at ``uri``.

    Args:
        uri: Tracking URI; always explicit, since MLflow's own default depends on what lies in the folder.
        check: Whether to see first that the store answers.

    Raises:
        TrackingError: The store does not answer, or MLflow has no store for such a URI.
    """
    prepare_environment()
    if check:
        check_reachable(uri)
    quiet_mlflow()
    with tracking_errors(uri):
        from mlflow.tracking import MlflowClient

        if (database := sqlite_path(uri)) is not None:
            make_database(database)
        if not is_azure(uri):
            return MlflowClient(tracking_uri=absolute_uri(uri))
        client = MlflowClient(tracking_uri=prepare(uri))
        renew_requests(client)
        return client


@contextmanager
def never_repeated() -> Iterator[None]:
    """Have MLflow send a request once: what creates something would create it again where only the answer was lost.

    The requests of other threads are not repeated either meanwhile; whoever makes them tries again by itself.
    """
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    with _repeats:
        before = os.environ.get(name)
        os.environ[name] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def quiet_mlflow() -> None:
    """Keep MLflow's and alembic's progress talk (database migrations and the like) out of the terminal."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow raises inside into a :class:`TrackingError` that names the store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:
        # The plugin of Azure ML raises azure.core's errors, and plain ones of its own.
        of_azure = type(error) is Exception or type(error).__module__.startswith("azure.")
        if not isinstance(error, MlflowException | OSError) and not of_azure:
            raise
        detail = unquote(str(error)).strip().splitlines() or [type(error).__name__]
        raise TrackingError(f"tracking store {redact(uri)}: {hide_passwords(detail[0][:500])}") from error

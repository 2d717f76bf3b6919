"""Whether an MLflow tracking store can be used, found out at once: MLflow itself would retry for minutes."""

import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from plato_core.errors import ConfigError, PlatoError
from plato_core.hosts import is_loopback
from plato_core.names import did_you_mean

TIMEOUT_S = 3.0
SCHEMES: tuple[str, ...] = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "azureml")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SQLITE_MAGIC = b"SQLite format 3\x00"


def check_store(uri: str) -> None:
    """Check that the tracking store can be reached, and be written to as far as that can be seen.

    Args:
        uri: An MLflow tracking URI, SQLite files by absolute path.

    Raises:
        ConfigError: If the kind of store is not supported, or it does not answer within 3 s. For an Azure ML workspace
            it takes longer: its SDK is loaded, and somebody must be signed in.
    """
    scheme = urlsplit(uri).scheme.lower().split("+")[0]
    if scheme in ("http", "https"):
        _check_http(uri)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme == "azureml":
        _check_azure(uri)
    elif scheme in _PORTS:
        _check_socket(uri, _PORTS[scheme])
    elif scheme in ("", "file"):
        raise ConfigError(
            f"tracking_uri: {uri!r} is a folder, and MLflow no longer writes to its old file store; "
            "give a database, such as sqlite:///mlflow.db"
        )
    else:
        raise ConfigError(
            f"tracking_uri: {scheme!r} is not supported{did_you_mean(scheme, SCHEMES)}; "
            f"give a URI that starts with one of {', '.join(SCHEMES)}"
        )


def is_of_this_machine(uri: str) -> bool:
    """Say whether no other machine reaches a store by this URI."""
    parts = urlsplit(uri)
    return parts.scheme.split("+")[0] in ("", "file", "sqlite") or (
        parts.hostname is not None and is_loopback(parts.hostname)
    )


def _check_http(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return  # somebody is there; whether the user may come in, MLflow will say
        raise _unreachable(uri, f"it answers {error.code}") from error
    except (OSError, ValueError) as error:
        raise _unreachable(uri, str(getattr(error, "reason", None) or error)) from error


def _check_azure(uri: str) -> None:
    from plato_core.tracking.azure import check

    try:
        check(uri)
    except ConfigError:
        raise
    except PlatoError as error:
        raise ConfigError(f"tracking_uri: {error}") from error


def _check_socket(uri: str, default_port: int) -> None:
    parts = urlsplit(uri)
    if not parts.hostname:
        return  # a database's own socket file, or a host in the query: the driver knows where
    try:
        with socket.create_connection((parts.hostname, parts.port or default_port), timeout=TIMEOUT_S):
            return
    except (OSError, ValueError) as error:
        raise _unreachable(uri, str(error)) from error


def _unreachable(uri: str, reason: str) -> ConfigError:
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return ConfigError(
        f"tracking_uri: {shown} cannot be reached ({reason}); start the server, or give another --tracking-uri"
    )


def _check_sqlite(uri: str) -> None:
    location = uri.partition(":///")[2].partition("?")[0]
    if not location or location == ":memory:":
        raise ConfigError(f"tracking_uri: {uri!r} names no file, and its runs would be lost; give sqlite:///mlflow.db")
    path = Path(location)
    if path.is_dir():
        raise ConfigError(f"tracking_uri: {path} is a folder; give the database's file, sqlite:///{path}/mlflow.db")
    if not path.parent.is_dir():
        raise ConfigError(
            f"tracking_uri: the folder {path.parent} of {path.name} does not exist; "
            "create it, or give another --tracking-uri"
        )
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise ConfigError(f"tracking_uri: {place} cannot be written to; give another --tracking-uri")
    if path.exists() and path.stat().st_size > 0:
        with path.open("rb") as file:
            if file.read(len(_SQLITE_MAGIC)) != _SQLITE_MAGIC:
                raise ConfigError(f"tracking_uri: {path} is no SQLite database; give another --tracking-uri")

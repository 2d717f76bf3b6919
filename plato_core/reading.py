"""Which tracking store is read, where a user need not have named one."""

import os
from collections.abc import Mapping
from pathlib import Path

from plato_core.errors import ConfigError


def reading_uri(
    tracking_uri: str | None = None,
    environment: Mapping[str, str] | None = None,
    workspace_config: str | os.PathLike[str] | None = None,
) -> str:
    """Return the URI of a store that is there to be read.

    The first of these that there is: `tracking_uri`, the workspace of `workspace_config`, PLATO_TRACKING_URI, the
    Azure ML workspace of a `config.json` in the working folder or above, MLFLOW_TRACKING_URI, `mlflow.db` in the
    working folder.

    Args:
        tracking_uri: Of any MLflow store, `azureml://` too.
        environment: Where the variables are looked up; by default the process's own.
        workspace_config: The `config.json` of an Azure ML workspace, or a folder to look for it from, as Azure's own
            tools do.

    Raises:
        ConfigError: It names a SQLite file that does not exist. MLflow would make an empty one. Or there is no such
            `config.json`.
        AmlError: Nobody is signed in to Azure, or it knows no such workspace.
    """
    from plato_core.tracking.client import sqlite_path

    variables = os.environ if environment is None else environment
    uri = tracking_uri
    if not uri and (workspace_config is not None or not variables.get("PLATO_TRACKING_URI")):
        uri = _workspace_uri(workspace_config)
    uri = uri or variables.get("PLATO_TRACKING_URI") or variables.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = sqlite_path(uri)
    if file is not None and not file.is_file():
        raise ConfigError(
            f"The tracking store {uri!r} does not exist: there is no file {file}. Run this in the folder "
            "where the sweep ran, or name its store with the tracking URI or PLATO_TRACKING_URI."
        )
    return uri


def _workspace_uri(workspace_config: str | os.PathLike[str] | None) -> str | None:
    from plato_core.aml.clouds import tracking_uri_of
    from plato_core.aml.workspace import Workspace
    from plato_core.tracking.azure import canonical

    workspace = Workspace.find(None if workspace_config is None else Path(workspace_config))
    return None if workspace is None else canonical(tracking_uri_of(workspace))

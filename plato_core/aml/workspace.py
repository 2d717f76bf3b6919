"""Which Azure ML workspace is meant: named in full, or by the `config.json` that its page in the portal offers."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from plato_core.errors import ConfigError

CONFIG_FILES = ("config.json", "project.json")
CONFIG_FOLDERS = (".azureml", "aml_config", "")
_KEYS = ("subscription_id", "resource_group", "workspace_name")
_LEVELS = 20  # so many parents MLClient.from_config looks at
_WAY_OUT = (
    "download config.json from the workspace's page in the Azure portal, or write {"
    + ", ".join(f'"{key}": "..."' for key in _KEYS)
    + "}"
)


class Workspace(BaseModel):
    """An Azure ML workspace.

    Attributes:
        subscription_id: The Azure subscription that it belongs to.
        resource_group: The resource group that holds it.
        name: Its own name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subscription_id: str = Field(min_length=1)
    resource_group: str = Field(min_length=1)
    name: str = Field(min_length=1)

    @property
    def resource_id(self) -> str:
        """The path that Azure's addresses name it by."""
        return (
            f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.name}"
        )

    def __str__(self) -> str:
        return f"{self.name} (resource group {self.resource_group}, subscription {self.subscription_id})"

    @classmethod
    def find(cls, path: Path | str | None = None) -> Workspace | None:
        """Return the workspace that a `config.json` names, looked for as `MLClient.from_config` does.

        Args:
            path: The file, or the folder to begin at: there and in its parents, each with `.azureml/` and
                `aml_config/`. By default the working folder. A `config.json` of something else is passed over.

        Returns:
            None without such a file, if no path was given.

        Raises:
            ConfigError: The path given leads to no such file, or the file names no workspace.
        """
        start = Path.cwd() if path is None else Path(path).expanduser()
        if start.is_file():
            return cls.read(start)
        if path is not None and not start.is_dir():
            raise ConfigError(f"workspace config {start}: there is no such file or folder; {_WAY_OUT}")
        found = find_config(start)
        if found is not None:
            return cls.read(found)
        if path is None:
            return None
        raise ConfigError(f"workspace config {start}: no config.json there or in its parent folders; {_WAY_OUT}")

    @classmethod
    def read(cls, file: Path) -> Workspace:
        """Return the workspace that a configuration file names.

        Raises:
            ConfigError: It cannot be read, or something is missing in it.
        """
        try:
            content = _content(file)
        except OSError as error:
            raise ConfigError(f"workspace config {file}: {error.strerror}; {_WAY_OUT}") from None
        except ValueError as error:
            raise ConfigError(f"workspace config {file}: not JSON ({error}); {_WAY_OUT}") from None
        if content.get("Scope"):
            return cls.of(str(content["Scope"]), what=f"workspace config {file}, Scope")
        missing = [key for key in _KEYS if not isinstance(content.get(key), str) or not content[key].strip()]
        if missing:
            raise ConfigError(f"workspace config {file}: {', '.join(missing)} missing or empty; {_WAY_OUT}")
        subscription, group, name = (content[key].strip() for key in _KEYS)
        return cls(subscription_id=subscription, resource_group=group, name=name)

    @classmethod
    def of(cls, resource_id: str, what: str = "workspace") -> Workspace:
        """Return the workspace of a path like `/subscriptions/.../resourceGroups/.../workspaces/...`.

        Args:
            resource_id: The path, or any address that holds it, like an `azureml://` one.
            what: The name of the value in an error.

        Raises:
            ConfigError: A part of it is missing.
        """
        parts = resource_id.split("?")[0].split("/")
        lower = [part.lower() for part in parts]
        found = {}
        for key in ("subscriptions", "resourcegroups", "workspaces"):
            if key in lower and lower.index(key) + 1 < len(parts):
                found[key] = parts[lower.index(key) + 1]
        if len(found) < 3 or not all(found.values()):
            raise ConfigError(
                f"{what}: {resource_id!r} must be like /subscriptions/ID/resourceGroups/GROUP"
                "/providers/Microsoft.MachineLearningServices/workspaces/NAME"
            )
        return cls(
            subscription_id=found["subscriptions"], resource_group=found["resourcegroups"], name=found["workspaces"]
        )


def find_config(start: Path) -> Path | None:
    """Return the nearest workspace configuration of a folder or its parents; files of something else are no such."""
    folder = start.resolve()
    parents = (folder, *folder.parents)[: _LEVELS + 1]
    # In the SDK's order: every level's .azureml/ comes before any level's plain file.
    for inner, name in product(CONFIG_FOLDERS, CONFIG_FILES):
        for level in parents:
            file = level / inner / name
            if file.is_file() and _names_a_workspace(file):
                return file
    return None


def _content(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise ValueError("no object in it")
    return content


def _names_a_workspace(file: Path) -> bool:
    try:
        content = _content(file)
    except (OSError, ValueError):
        return False
    return "Scope" in content or any(key in content for key in _KEYS)

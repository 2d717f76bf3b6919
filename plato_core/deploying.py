"""Applying `prefect.yaml` to a Prefect server, once it is sure that this will not stop half-way."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from plato_core import config_yaml
from plato_core.errors import ConfigError, PlatoError
from plato_core.prefect_client import named_server
from plato_core.report.text import plain

PREFECT_YAML = "prefect.yaml"


def deploy(folder: Path) -> str:
    """Apply the deployments of a folder's `prefect.yaml`, as `prefect --no-prompt deploy --all` there does.

    Prefect by itself stops at the first deployment whose work pool is missing, after those before it, and does not
    say how to make one.

    Args:
        folder: The project's folder.

    Returns:
        What Prefect said.

    Raises:
        ConfigError: The file, the server or a work pool is missing; nothing was deployed.
        PlatoError: Prefect refused.
    """
    needed = work_pools(folder)
    there = _existing_work_pools()
    for name, kind in needed.items():
        if name not in there:
            raise ConfigError(
                f"work pool {name!r} does not exist; make it with: prefect work-pool create {name} --type {kind}"
            )
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    # `{{ $PWD }}` in the file is the folder, wherever this was called from.
    environment = os.environ | {"PWD": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PlatoError(f"prefect deploy failed: {plain(done.stdout + done.stderr)}")
    return done.stdout


def deployments(folder: Path) -> list[dict[str, Any]]:
    """Return the deployments that a folder's `prefect.yaml` names, as they are written.

    Raises:
        ConfigError: There is no such file.
    """
    return _content(folder)["deployments"]


def work_pools(folder: Path) -> dict[str, str]:
    """Return the work pools that the deployments of a folder need, with their types.

    Raises:
        ConfigError: There is no `prefect.yaml`.
    """
    content = _content(folder)
    types = content.get("definitions", {}).get("work_pool_types", {})
    names = dict.fromkeys(deployment["work_pool"]["name"] for deployment in content["deployments"])
    return {name: types.get(name, "process") for name in names}


def _content(folder: Path) -> dict[str, Any]:
    path = folder / PREFECT_YAML
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; run this in the project's folder")
    return config_yaml.read_mapping(path)[0]


def _existing_work_pools() -> set[str]:
    with named_server() as client:
        response = client.request("POST", "/work_pools/filter", json={"limit": 200})
    return {pool["name"] for pool in response.json()}

"""Applying `prefect.yaml` to a Prefect server, once it is sure that this will not stop half-way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plato_core import config_yaml
from plato_core.aml import WORKER_TYPE
from plato_core.automations import install_lost
from plato_core.config_form import form_values
from plato_core.errors import ConfigError, PlatoError
from plato_core.prefect_client import named_server
from plato_core.report.text import plain

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PREFECT_YAML = "prefect.yaml"


@dataclass(frozen=True)
class Deployed:
    """What is otherwise on the server than a reader of the project's files would think.

    Attributes:
        paused: The schedules that stay paused though the file has them active: names of deployments with slugs.
        automations: The automations that come with the deployments, each with whether it is switched on.
    """

    paused: set[tuple[str, str]]
    automations: list[tuple[str, bool]]


def deploy(folder: Path) -> Deployed:
    """Apply the deployments of a folder's `prefect.yaml`, as `prefect --no-prompt deploy --all` there does.

    Work pools of Azure ML that are missing are made. With the deployments comes the automation that marks runs Crashed
    whose process is gone (`plato_core.automations`).

    Prefect by itself stops at the first deployment whose work pool is missing, after those before it, and does not
    say how to make one. And it starts schedules again that were paused on the server, as in its UI; here they stay so.

    Args:
        folder: The project's folder.

    Raises:
        ConfigError: The file, the server or a work pool is missing, or a setting is not possible; nothing was
            deployed.
        PlatoError: Prefect refused.
    """
    found = deployments(folder)
    _check(found)
    needed = work_pools(folder)
    there = _existing_work_pools()
    missing = {name: kind for name, kind in needed.items() if name not in there}
    for name, kind in missing.items():
        if kind != WORKER_TYPE:
            raise ConfigError(
                f"work pool {name!r} does not exist; make it with: prefect work-pool create {name} --type {kind}"
            )
    for name in missing:  # nothing of it is on this machine, and without a worker it does nothing
        _make_azure_ml_pool(name)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    # `{{ $PWD }}` in the file is the folder, wherever this was called from.
    environment = os.environ | {"PWD": str(folder)}
    names = [deployment["name"] for deployment in found]
    paused = _paused(names)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    kept = _pause_again(names, paused)  # of those that were applied before a failure too
    if done.returncode != 0:
        raise PlatoError(f"prefect deploy failed: {plain(done.stdout + done.stderr)}")
    return Deployed(kept, install_lost(folder))


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


def _check(found: list[dict[str, Any]]) -> None:
    """Check what Prefect would meet half-way: the settings of each form, and the schedules."""
    for deployment in found:
        for schedule in deployment.get("schedules") or ():
            _check_schedule(deployment["name"], schedule)
        for step in deployment.get("build") or ():
            for function, inputs in step.items():
                if function != f"{form_values.__module__}.{form_values.__name__}":
                    continue
                try:
                    form_values(**{name: value for name, value in inputs.items() if name != "id"})
                except ConfigError as error:
                    raise ConfigError(f"{PREFECT_YAML}, deployment {deployment['name']}: {error}") from None


def _check_schedule(name: str, schedule: Mapping[str, Any]) -> None:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    if "cron" not in schedule:
        return
    try:
        CronSchedule(cron=schedule["cron"], timezone=schedule.get("timezone"))
    except ValidationError as error:
        what = error.errors()[0]
        why = what["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{PREFECT_YAML}, deployment {name}, schedule: {why}") from None


def prefect_yaml(folder: Path) -> Path:
    """Return the file of a folder's deployments.

    Raises:
        ConfigError: There is none.
    """
    path = folder / PREFECT_YAML
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; run this in the project's folder")
    return path


def _content(folder: Path) -> dict[str, Any]:
    return config_yaml.read_mapping(prefect_yaml(folder))[0]


def _paused(names: list[str]) -> set[tuple[str, str]]:
    with named_server() as client:
        found = _schedules(client, names)
    return {(deployment["id"], schedule["slug"]) for deployment, schedule in found if not schedule["active"]}


def _pause_again(names: list[str], paused: set[tuple[str, str]]) -> set[tuple[str, str]]:
    kept = set()
    with named_server() as client:
        for deployment, schedule in _schedules(client, names):
            if schedule["active"] and (deployment["id"], schedule["slug"]) in paused:
                path = {"id": deployment["id"], "schedule_id": schedule["id"]}
                client.request(
                    "PATCH", "/deployments/{id}/schedules/{schedule_id}", path_params=path, json={"active": False}
                )
                kept.add((deployment["name"], schedule["slug"]))
    return kept


def _schedules(client: SyncPrefectClient, names: list[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return deployments with their schedules. One is known by its slug: its id is new with each deploy."""
    found = client.request("POST", "/deployments/filter", json={"deployments": {"name": {"any_": names}}}).json()
    return [(deployment, schedule) for deployment in found for schedule in deployment["schedules"] if schedule["slug"]]


def _make_azure_ml_pool(name: str) -> None:
    from plato_core.aml.pool import template

    pool = {"name": name, "type": WORKER_TYPE, "base_job_template": template()}
    with named_server() as client:
        client.request("POST", "/work_pools/", json=pool)


def _existing_work_pools() -> set[str]:
    with named_server() as client:
        response = client.request("POST", "/work_pools/filter", json={"limit": 200})
    return {pool["name"] for pool in response.json()}

"""Automations of a Prefect server, from files of the project to the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plato_core import config_yaml
from plato_core.errors import ConfigError
from plato_core.prefect_client import named_server
from plato_core.report.text import plain

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

FOLDER = Path("deployments/automations")
# Marks sweeps Crashed that are no more: comes with the deployments. What notifies comes with `plato notify`.
LOST = FOLDER / "lost.yaml"


def install_lost(folder: Path) -> list[tuple[str, bool]]:
    """Has the server mark runs whose process is gone, as a project's file says, if it has one.

    What is there and the same is left as it is: a change would make the server forget which runs it waits for.
    One that was switched off, in the UI say, stays so.

    Args:
        folder: The project's folder.

    Returns:
        Names of the automations, each with whether it is switched on.

    Raises:
        ConfigError: The file cannot be read, or no server answers.
    """
    if not (folder / LOST).is_file():
        return []
    wanted = read(folder / LOST)
    with named_server() as client:
        return [(one.name, _put_if_changed(client, one)) for one in wanted]


def read(path: Path) -> list[AutomationCore]:
    """Returns the automations of a file, which `prefect automation create --from-file` takes too.

    Raises:
        ConfigError: It is missing or cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; run this in the project's folder")
    from prefect.events.schemas.automations import AutomationCore
    from pydantic import ValidationError

    try:
        return [AutomationCore.model_validate(one) for one in config_yaml.read_mapping(path)[0]["automations"]]
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{path}: the automations in it are not readable: {plain(str(error))}") from None


def put(client: SyncPrefectClient, wanted: AutomationCore, there: Automation | None) -> None:
    """Makes an automation, or changes the one that is there to it."""
    if there is None:
        client.create_automation(wanted)
    else:
        client.update_automation(there.id, wanted)


def _put_if_changed(client: SyncPrefectClient, wanted: AutomationCore) -> bool:
    """Returns whether it is switched on."""
    kinds = {action.type for action in wanted.actions}
    # One of the same name that does something else is somebody else's.
    named = client.read_automations_by_name(wanted.name)
    there = next((found for found in named if {action.type for action in found.actions} == kinds), None)
    if there is not None:
        wanted.enabled = there.enabled
        if type(wanted).model_validate(there.model_dump()) == wanted:
            return wanted.enabled
    put(client, wanted, there)
    return wanted.enabled

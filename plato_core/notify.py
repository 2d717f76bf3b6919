"""Having a Prefect server call a webhook when a sweep ends, through its own blocks and automations."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from plato_core import automations as on_server
from plato_core.errors import ConfigError
from plato_core.names import did_you_mean
from plato_core.prefect_client import named_server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

AUTOMATIONS = on_server.FOLDER / "notify.yaml"
# The block that holds the address, which may be as good as a password: only the server reads it.
BLOCK_NAME = "plato-notify"
_HEADERS = {"Content-Type": "application/json"}
_NAME_PREFIX = "sweep "


def notify(folder: Path, ask_url: Callable[[], str], on: Collection[str]) -> None:
    """Has the server call an address. A second time it replaces what the first has set up, and nothing else.

    Args:
        folder: The project's folder, with `AUTOMATIONS` in it.
        ask_url: Returns the address that is sent a POST; called when all else is known to be right.
        on: At which ends of a sweep: what follows "sweep" in the automations' names. The others are switched off.

    Raises:
        ConfigError: The address or an outcome is none, or no server answers.
    """
    automations = on_server.read(folder / AUTOMATIONS)
    _check_outcomes(on, [_outcome(automation) for automation in automations])
    with named_server() as client:
        there = {automation.name: automation for automation in _made_before(client, automations)}
        url = ask_url()
        _check_url(url)
        from prefect.blocks.webhook import Webhook
        from pydantic import SecretStr

        Webhook(url=SecretStr(url), headers=_HEADERS).save(BLOCK_NAME, overwrite=True)  # type: ignore[arg-type]
        block_id = client.read_block_document_by_name(BLOCK_NAME, "webhook").id
        for automation in automations:
            for action in automation.actions:
                if action.type == "call-webhook":
                    action.block_document_id = block_id
            automation.enabled = _outcome(automation) in on
            on_server.put(client, automation, there.get(automation.name))


def stop(folder: Path) -> int:
    """Removes from the server what `notify` has set up.

    Returns:
        How many automations there were to remove.

    Raises:
        ConfigError: The file of automations is missing or cannot be read, or no server answers.
    """
    automations = on_server.read(folder / AUTOMATIONS)
    with named_server() as client:
        there = _made_before(client, automations)
        for automation in there:
            client.delete_automation(automation.id)
        from prefect.blocks.webhook import Webhook

        with contextlib.suppress(ValueError):  # there is none
            Webhook.delete(BLOCK_NAME)
    return len(there)


def _made_before(client: SyncPrefectClient, wanted: list[AutomationCore]) -> list[Automation]:
    """What an earlier call has set up. One of the same name that does not call our block is somebody else's."""
    from prefect.exceptions import ObjectNotFound

    try:
        block_id = client.read_block_document_by_name(BLOCK_NAME, "webhook").id
    except ObjectNotFound:
        return []
    named = [found for one in wanted for found in client.read_automations_by_name(one.name)]
    return [
        automation
        for automation in named
        if any(action.type == "call-webhook" and action.block_document_id == block_id for action in automation.actions)
    ]


def _outcome(automation: AutomationCore) -> str:
    return automation.name.removeprefix(_NAME_PREFIX)


def _check_url(url: str) -> None:
    # Not the address itself: it is a secret.
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
        raise ConfigError("what came on standard input is no address of a webhook; give one line with https://...")


def _check_outcomes(on: Collection[str], known: list[str]) -> None:
    if not on:
        raise ConfigError(f"--on: names no end of a sweep; give some of {', '.join(known)}, or --off")
    for outcome in on:
        if outcome not in known:
            raise ConfigError(f"--on: {outcome!r} is none of {', '.join(known)}{did_you_mean(outcome, known)}")

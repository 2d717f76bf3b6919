"""The key vault: `GET https://<vault>.vault.azure.net/secrets/<name>[/<version>]`."""

from __future__ import annotations

import re
import time

from aml_emulator.cloud import AAD_HOST, TENANT
from aml_emulator.messages import Answer, Request, ServiceError, as_json, no_route
from aml_emulator.state import State
from aml_emulator.tokens import Tokens


def vault(request: Request, state: State, tokens: Tokens) -> Answer:
    """Answers with a secret.

    Raises:
        ServiceError: 401 with the vault's challenge, or 404.
    """
    try:
        tokens.check(request, "vault.azure.net")
    except ServiceError as refused:
        challenge = f'Bearer authorization="https://{AAD_HOST}/{TENANT}", resource="https://vault.azure.net"'
        named = {"WWW-Authenticate": challenge}
        raise ServiceError(401, "Unauthorized", f"AKV10000: {refused}", named) from None
    found = re.fullmatch(r"/secrets/([^/]+)(?:/([^/]*))?", request.path)
    if request.method != "GET" or not found:
        raise no_route(request)
    name = found[1]
    if name not in state.secrets:
        message = f"A secret with (name/id) {name} was not found in this key vault."
        raise ServiceError(404, "SecretNotFound", message)
    now = int(time.time())
    return as_json(
        {
            "value": state.secrets[name],
            "id": f"https://{request.host}/secrets/{name}/{found[2] or '0' * 32}",
            "attributes": {"enabled": True, "created": now, "updated": now, "recoveryLevel": "Recoverable"},
        }
    )

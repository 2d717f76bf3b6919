"""The directory (`login.microsoftonline.com`) and the managed identity's endpoint."""

from __future__ import annotations

import urllib.parse

from aml_emulator.cloud import AAD_HOST, CLIENT_ID, TENANT
from aml_emulator.messages import Answer, Request, as_json, no_route
from aml_emulator.tokens import Tokens

_BASE = f"https://{AAD_HOST}"


def directory(request: Request, tokens: Tokens) -> Answer:
    """Answers what azure-identity asks before and for a token."""
    if "openid-configuration" in request.path:
        tenant = request.path.split("/")[1]
        return as_json(
            {
                "token_endpoint": f"{_BASE}/{tenant}/oauth2/v2.0/token",
                "authorization_endpoint": f"{_BASE}/{tenant}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{_BASE}/{tenant}/oauth2/v2.0/devicecode",
                "issuer": f"{_BASE}/{tenant}/v2.0",
                "jwks_uri": f"{_BASE}/keys",
            }
        )
    if "discovery/instance" in request.path:
        aliases = [AAD_HOST, "login.windows.net"]
        return as_json(
            {
                "tenant_discovery_endpoint": f"{_BASE}/{TENANT}/v2.0/.well-known/openid-configuration",
                "api-version": "1.1",
                "metadata": [{"preferred_network": AAD_HOST, "preferred_cache": aliases[1], "aliases": aliases}],
            }
        )
    if request.path.endswith("/token"):
        return _token(request, tokens)
    raise no_route(request)


def _token(request: Request, tokens: Tokens) -> Answer:
    form = dict(urllib.parse.parse_qsl(request.body.decode()))
    if form.get("client_id") != CLIENT_ID:
        return _refusal("unauthorized_client", 700016, f"Application '{form.get('client_id')}' was not found", 400)
    if form.get("client_secret") != tokens.client_secret:
        return _refusal("invalid_client", 7000215, "Invalid client secret provided.", 401)
    audience = form.get("scope", "").split(" ")[0].removesuffix("/.default")
    token, _ = tokens.issue(audience, idtyp="app")
    lasts = int(tokens.token_seconds)
    return as_json({"token_type": "Bearer", "expires_in": lasts, "ext_expires_in": lasts, "access_token": token})


def _refusal(error: str, number: int, text: str, status: int) -> Answer:
    described = f"AADSTS{number}: {text}"
    return as_json({"error": error, "error_description": described, "error_codes": [number]}, status)


def managed_identity(request: Request, tokens: Tokens) -> Answer:
    """Answers a job's node, which asks with the secret of its own environment."""
    given = request.headers.get("secret") or request.headers.get("X-IDENTITY-HEADER")
    if given != tokens.identity_secret:
        return as_json({"error": "the identity's secret is missing or wrong"}, 401)
    resource = request.query.get("resource", "")
    token, expires = tokens.issue(resource.removesuffix("/.default"))
    client_id = request.query.get("clientid") or request.query.get("client_id") or "emu-identity"
    return as_json(
        {
            "access_token": token,
            "expires_on": str(expires),
            "resource": resource,
            "token_type": "Bearer",
            "client_id": client_id,
        }
    )

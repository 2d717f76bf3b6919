"""Tokens and signatures: what is handed out, how long it lasts, and what it opens."""

from __future__ import annotations

import base64
import datetime as dt
import json
import secrets
import threading
import time
import urllib.parse
from typing import Any

from aml_emulator.cloud import AAD_HOST, TENANT
from aml_emulator.messages import Request, ServiceError

_SAS_LASTS = dt.timedelta(hours=8)


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


class Tokens:
    """All credentials of one emulator.

    Args:
        token_seconds: How long a token lasts.
        client_secret: The one that the directory takes.
    """

    def __init__(self, token_seconds: float, client_secret: str) -> None:
        self.token_seconds = token_seconds
        self.client_secret = client_secret
        self.account_key = base64.b64encode(secrets.token_bytes(48)).decode()
        self.identity_secret = secrets.token_hex(16)  # of the managed identity's endpoint
        self._claims: dict[str, dict[str, Any]] = {}
        self._signatures: dict[str, dt.datetime] = {}
        self._lock = threading.Lock()

    def issue(self, audience: str, **claims: Any) -> tuple[str, int]:
        """Returns a token and when it expires, in seconds since the epoch."""
        now = int(time.time())
        expires = now + int(self.token_seconds)
        body = {"aud": audience, "iss": f"https://sts.windows.net/{TENANT}/", "iat": now, "nbf": now, "exp": expires}
        body |= {"tid": TENANT, "oid": "emu-oid", "appid": "emu-app", "uti": secrets.token_hex(8), **claims}
        token = f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(body)}.{secrets.token_urlsafe(24)}"
        with self._lock:
            self._claims[token] = body
        return token, expires

    def rotate(self, client_secret: str) -> None:
        """Has the directory take another secret, and ends the tokens that it gave for the one before."""
        with self._lock:
            self.client_secret = client_secret
            for claims in self._claims.values():
                if claims.get("idtyp") == "app":
                    claims["exp"] = int(time.time()) - 1

    def expire(self, token: str) -> None:
        """Has a token expire now."""
        self._claims[token]["exp"] = int(time.time()) - 1

    def expire_addresses(self) -> None:
        """Has every shared access signature that was handed out expire now."""
        with self._lock:
            self._signatures = dict.fromkeys(self._signatures, dt.datetime.now(dt.UTC))

    def check(self, request: Request, *audiences: str) -> dict[str, Any]:
        """Returns the claims of a request's token.

        Args:
            request: With an `Authorization` header, one hopes.
            audiences: Parts of those that it may be for; none given: any.

        Raises:
            ServiceError: 401, if there is none, or an expired one, or one for something else.
        """
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        challenge = f'Bearer authorization_uri="https://{AAD_HOST}/{TENANT}", error="invalid_token"'
        if scheme != "Bearer":
            raise _denied(
                "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.", challenge
            )
        claims = self._claims.get(token)
        if claims is None:
            raise _denied("InvalidAuthenticationToken", "The access token is invalid.", challenge)
        if claims["exp"] <= time.time():
            raise _denied(
                "ExpiredAuthenticationToken", "The access token expiry UTC time is earlier than now.", challenge
            )
        if audiences and not any(part in claims["aud"] for part in audiences):
            message = f"The access token has been obtained for wrong audience or resource '{claims['aud']}'."
            raise _denied("InvalidAuthenticationTokenAudience", message, challenge)
        return claims

    def sas(self, permissions: str) -> str:
        """Returns a shared access signature as a query."""
        expires = dt.datetime.now(dt.UTC) + _SAS_LASTS
        signature = secrets.token_hex(16)
        with self._lock:
            self._signatures[signature] = expires
        shown = urllib.parse.quote(expires.strftime("%Y-%m-%dT%H:%M:%SZ"))
        return f"sv=2021-08-06&sr=c&sp={permissions}&se={shown}&sig={signature}"

    def opens_storage(self, request: Request) -> bool:
        """Whether a request may touch blobs: by a signature, by the account's key, or by a token for storage."""
        if expires := self._signatures.get(request.query.get("sig", "")):
            return expires > dt.datetime.now(dt.UTC)
        if request.headers.get("Authorization", "").startswith("SharedKey "):
            return True  # the signature itself is not computed
        try:
            self.check(request, "storage.azure.com")
        except ServiceError:
            return False
        return True

    def all_secrets(self) -> list[str]:
        """Every value that must not turn up in a log, a tag, a parameter or an artifact."""
        with self._lock:
            return [self.client_secret, self.account_key, self.identity_secret, *self._claims, *self._signatures]


def _denied(code: str, message: str, challenge: str) -> ServiceError:
    return ServiceError(401, code, message, {"WWW-Authenticate": challenge})

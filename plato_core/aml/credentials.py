"""Signing in to Azure with azure-identity, without any window or prompt: a worker has nobody to answer one.

Tried in this order, the first that answers is kept: a service principal in `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` and
`AZURE_CLIENT_SECRET` (or a certificate), a workload identity, a managed identity, then whoever signed in with
`az login`, Azure PowerShell or `azd auth login`. A job with the identity of the user who submitted it has that one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from plato_core.aml.clouds import UNREACHED, current_cloud
from plato_core.errors import AmlError, AmlUnavailable
from plato_core.report.text import cut, plain

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential

WAY_OUT = (
    "sign in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET of a service principal, "
    "or AZURE_CLIENT_ID of a managed identity"
)
# Of a way that is not set up here; a way that was tried and refused says something else.
_NOT_SET_UP = (
    "unavailable", "not available", "not found", "not be found", "not installed", "not configured", "az login",
    "azd auth login", "connect-azaccount",
)  # fmt: skip
# A job's own service for the identity of its nodes was there and gave no token, also where it throttles. The word
# before its answer is azure-identity's, whatever the answer was.
_NO_TOKEN = re.compile(r"^Azure ML managed identity .*Token request error: (\(invalid_scope\) *)?", re.DOTALL)
_PREFIXES = ("authentication failed: ", "(invalid_client) ", "(unauthorized_client) ")
_NOBODY = "nobody is signed in"
# By these Azure refuses who asks. Without one it was not reached: azure-identity tells both by the same error.
_REFUSAL = re.compile(r"AADSTS\d+|\((invalid_(?!scope\))|unauthorized_)\w+\)")
_LONGEST = 300
# In seconds. The SDK's own limits are 300: a service that hangs would keep each question for 20 minutes.
TIMEOUTS: dict[str, Any] = {"connection_timeout": 10.0, "read_timeout": 30.0}


class RenewableCredential:
    """A credential that is made anew when it is refused after it was not: somebody may have signed in again since.

    What azure-identity has read when it was made (the environment, a certificate's file, which way was open) it keeps,
    and its tokens until they end by themselves.

    Args:
        make: Makes one.
    """

    def __init__(self, make: Callable[[], TokenCredential]) -> None:
        self._make, self._inner = make, make()
        self._worked = False

    @property
    def way(self) -> str:
        """The name of the azure-identity credential that gave the last token, or that would be asked."""
        # azure-identity has no public name for the one of its chain that answered.
        return type(getattr(self._inner, "_successful_credential", None) or self._inner).__name__

    def renew(self) -> None:
        """Forget all tokens, as one of them was refused before its end."""
        self._inner = self._make()

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Return a token; see azure-core's `TokenCredential`."""
        from azure.core.exceptions import ClientAuthenticationError

        try:
            token = self._inner.get_token(*scopes, **options)
        except ClientAuthenticationError:
            if not self._worked:
                raise
            other = self._make()
            token = other.get_token(*scopes, **options)
            self._inner = other
        self._worked = True
        return token


def credential() -> RenewableCredential:
    """Return a credential; nothing is asked for before its first use. It never opens a browser and never prompts.

    It outlives a rotated secret: when it is refused, it is made anew.
    """
    return RenewableCredential(_credential)


def hush() -> None:
    """Keep Azure's SDKs from logging every try and broken answer as a warning, before the error says the same."""
    for noisy in ("azure", "azure.ai.ml", "azure.core", "azure.identity"):  # some have levels of their own
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _credential() -> TokenCredential:
    from azure.identity import DefaultAzureCredential

    from plato_core.aml.transport import PromptTransport

    hush()
    if os.environ.get("OBO_ENDPOINT"):  # a job whose identity is `user_identity`
        from azure.ai.ml.identity import AzureMLOnBehalfOfCredential

        return AzureMLOnBehalfOfCredential()
    return DefaultAzureCredential(
        authority=os.environ.get("AZURE_AUTHORITY_HOST") or current_cloud().login,
        exclude_interactive_browser_credential=True,
        exclude_broker_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_shared_token_cache_credential=True,
        # DEFAULT_IDENTITY_CLIENT_ID: the identity of the compute that a job runs on.
        managed_identity_client_id=os.environ.get("AZURE_CLIENT_ID") or os.environ.get("DEFAULT_IDENTITY_CLIENT_ID"),
        transport=PromptTransport(**TIMEOUTS),
    )


def signed_in(scope: str | None = None) -> RenewableCredential:
    """Return a credential that has just given a token, so that a failure is met here and not deep in a client.

    Args:
        scope: What the token is for; None means Azure's management.

    Raises:
        AmlUnavailable: Azure could not be reached.
        AmlError: Nobody is signed in, or Azure refused.
    """
    from azure.core.exceptions import AzureError

    found = credential()
    try:
        found.get_token(scope or current_cloud().scope)
    except AzureError as error:
        raise sign_in_error(str(error)) from None
    return found


def sign_in_error(text: str) -> AmlError:
    """Return the error for azure-identity's account of everything it tried: final, or one that may pass."""
    message = sign_in_message(text)
    if message.startswith(_NOBODY) or _REFUSAL.search(text):
        return AmlError(message)
    return AmlUnavailable(message.removesuffix(WAY_OUT) + UNREACHED)


def sign_in_message(text: str) -> str:
    """Return the one line to show for azure-identity's account of everything it tried."""
    attempts: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("\t"):
            name, _, why = line.strip().partition(": ")
            attempts[name] = why
    refused = {
        name: why
        for name, why in attempts.items()
        if why.lower().startswith(_PREFIXES[0])
        or _NO_TOKEN.match(why)
        or (why and not any(word in why.lower() for word in _NOT_SET_UP))
    }
    if not attempts and text.strip():
        refused = {"": next(line for line in text.splitlines() if line.strip())}
    # The chain stops at the first that was refused; before it are those that were not set up.
    name, why = next(reversed(refused.items())) if refused else ("", "")
    if not why:
        tried = ", ".join(name.removesuffix("Credential") for name in attempts)
        return f"{_NOBODY} to Azure (tried: {tried}); {WAY_OUT}"
    why = plain(_NO_TOKEN.sub("the identity's service gave no token: ", why))
    lower = why.lower()
    for prefix in _PREFIXES:
        if lower.startswith(prefix):
            why, lower = why[len(prefix) :], lower[len(prefix) :]
    who = f" ({name})" if name else ""
    return f"signing in to Azure{who} failed: {cut(why, _LONGEST).rstrip('.')}; {WAY_OUT}"

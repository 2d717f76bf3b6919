"""Secrets of Azure Key Vault, read inside a job by the job's own identity."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from plato_core.aml.credentials import TIMEOUTS, credential, sign_in_error
from plato_core.errors import AmlError, AmlUnavailable, ConfigError

_PATH = re.compile(r"/secrets/(?P<name>[0-9A-Za-z-]{1,127})(?:/(?P<version>[0-9A-Fa-f]{32}))?/?")


class VaultRefused(AmlError):
    """The key vault does not let in who asks."""


def secret(url: str) -> str:
    """Return the value of a secret.

    Args:
        url: As its page in the portal shows it: `https://<vault>.vault.azure.net/secrets/<name>`, perhaps a version.

    Raises:
        ConfigError: The URL is none of a secret.
        AmlUnavailable: The vault does not answer, or the job's identity does not yet.
        VaultRefused: The vault refuses it.
        AmlError: It has none of that name. The value is in no message.
    """
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
    from azure.keyvault.secrets import SecretClient

    vault, name, version = _parts(url)
    try:
        with SecretClient(vault, credential(), **TIMEOUTS) as client:
            value = client.get_secret(name, version).value
    except ResourceNotFoundError:
        raise AmlError(f"{url}: the vault has no such secret; create it, or correct the URL in the work pool") from None
    except ClientAuthenticationError as error:
        if error.status_code is None:  # azure-identity's own
            found = sign_in_error(str(error))
            raise type(found)(f"{url}: {found}") from None
        raise VaultRefused(_refused(url, error.status_code)) from None
    except HttpResponseError as error:
        if error.status_code in (401, 403):
            raise VaultRefused(_refused(url, error.status_code)) from None
        raise AmlUnavailable(f"{url}: the vault answers {error.status_code} ({error.reason}); try again") from None
    except AzureError as error:
        raise AmlUnavailable(f"{url}: the vault does not answer ({' '.join(str(error).split())[:200]})") from None
    if not value:
        raise AmlError(f"{url}: the secret is empty")
    return value


def _parts(url: str) -> tuple[str, str, str | None]:
    parts = urlsplit(url)
    found = _PATH.fullmatch(parts.path)
    if parts.scheme != "https" or not parts.hostname or found is None:
        raise ConfigError(f"{url!r} is no secret's URL; give one like https://VAULT.vault.azure.net/secrets/NAME")
    return f"https://{parts.netloc}", found["name"], found["version"]


def _refused(url: str, status: int | None) -> str:
    return (
        f"{url}: the vault refuses the job's identity ({status}); give that identity the role Key Vault Secrets User, "
        "or set another identity in the work pool"
    )

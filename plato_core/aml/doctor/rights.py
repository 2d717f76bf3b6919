"""Whose rights a job has, and what it reads and writes by them: the key vault's secrets, the sweeps' folder."""

from __future__ import annotations

import re
from typing import Any

from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, of_error, warned
from plato_core.aml.secrets import VaultRefused, secret
from plato_core.errors import AmlError, AmlUnavailable, ConfigError

SECRETS = {"PREFECT_API_KEY": "api_key_secret", "PREFECT_API_AUTH_STRING": "api_auth_secret"}
_DATASTORE = re.compile(r"azureml://(?:.*/)?datastores/(?P<name>[\w-]+)/paths/(?P<path>.*)")
_BY = {
    "compute": "the cluster's own settings",
    "managed": "a managed identity of the cluster",
    "user": "that of whoever starts the worker",
    "aml_token": "the run's own token",
}


def identity(case: Case) -> Finding:
    """See whether the cluster has the identity that the jobs are to have."""
    settings, cluster = case.settings, case.cluster
    assert cluster is not None
    wanted, name = settings.identity, cluster.name
    vault = case.prefect and any(getattr(settings, field) for field in SECRETS.values())
    add = f"az ml compute update --name {name} --identity-type SystemAssigned"
    if wanted == "aml_token" and vault:
        return broken("the run's own token opens no key vault", "set identity to managed")
    if wanted in ("managed", "compute"):
        has = cluster.identity
        if has is None and wanted == "managed":
            return broken(f"identity is managed, but cluster {name!r} has no managed identity", add)
        if has is None and vault:
            return warned(f"cluster {name!r} has no managed identity that could read the key vault", add)
        ids = [one.client_id for one in (getattr(has, "user_assigned_identities", None) or ())]
        if wanted == "managed" and settings.identity_client_id and settings.identity_client_id not in ids:
            known = " or ".join(filter(None, ids)) or "nothing: the cluster has one of its own"
            return broken(
                f"cluster {name!r} has no identity with the client id {settings.identity_client_id}",
                f"set identity_client_id to {known}",
            )
    return fine(f"{_BY[wanted]} ({wanted})")


def key_vault(case: Case) -> Finding:
    """See whether the secrets can be had; read from here, which is a hint only: in a job its own identity counts."""
    urls = {name: getattr(case.settings, field) for name, field in SECRETS.items()}
    named = {name: url for name, url in urls.items() if url}
    if not named:
        return fine("no secret is set, which is right for a Prefect server without a password")
    unread: list[str] = []
    remedy = "see that the cluster's network reaches the key vault"
    for name, url in named.items():
        try:
            value = secret(url)
        except VaultRefused:
            unread.append(f"{url}: there, but not for whoever is signed in here")
            remedy = "give the job's identity the role Key Vault Secrets User"
        except AmlUnavailable as error:
            unread.append(str(error).rpartition("; ")[0] or str(error))
        except (AmlError, ConfigError) as error:
            return of_error(error)
        else:
            if value != value.strip():
                return broken(f"{url}: a space or a line break is at an end of the secret", "store it anew without")
            case.secrets[name] = value
    if unread:
        return warned(f"{', '.join(unread)}; by which the job's own identity is not judged", remedy)
    return fine(f"{', '.join(named.values())} can be read from here; in a job the job's own identity counts")


def storage(case: Case) -> Finding:
    """See whether the datastore of the sweeps' files is there."""
    from azure.core.exceptions import ResourceNotFoundError

    where = case.settings.storage
    found = _DATASTORE.fullmatch(where)
    if found is None:
        return warned(
            f"{where} is no path of a datastore, so it is not looked up",
            "set storage like azureml://datastores/NAME/paths/FOLDER",
        )
    try:
        there: Any = case.ml.datastores.get(found["name"])
    except ResourceNotFoundError:
        names = ", ".join(sorted(one.name or "" for one in case.ml.datastores.list())) or "none"
        return broken(f"the workspace has no datastore {found['name']!r}", f"set storage to a path of one of: {names}")
    kind = str(getattr(there.type, "value", there.type))
    return fine(f"{found['path'] or 'the top'} of the datastore {there.name} ({kind}, {there.account_name})")

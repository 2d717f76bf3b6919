"""The way from a job to the Prefect API, as far as it can be known from here."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, warned
from plato_core.hosts import is_loopback, is_private
from plato_core.report.text import hide_passwords, plain

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 10.0
_REACH = "set api_url to an address of the Prefect API that the cluster's network reaches"
_STORE = "store it in an Azure key vault and set api_key_secret or api_auth_secret to the secret's URL"


def prefect_api(case: Case) -> Finding:
    """See whether the address leads to a Prefect API, takes the job's key, and has a version that fits."""
    import httpx

    url = case.settings.env.get("PREFECT_API_URL") or ""
    shown, host = hide_passwords(url), urlsplit(url).hostname or ""
    if is_loopback(host):
        return broken(f"{shown} leads each node to itself", _REACH)
    closed = is_private(host)
    try:
        with _client(case, url) as client:
            met = _asked(client, cloud="api.prefect.cloud" in host)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        why = plain(str(error)) or type(error).__name__
        if closed:
            return warned(f"{shown} does not answer from here ({why}), and may from the cluster's network", _REACH)
        return broken(f"{shown} does not answer from here ({why})", f"{_REACH}, and see that it runs")
    if met.problem:
        return broken(f"{shown} {met.problem}", "set api_url to the address of the API, which ends in /api as a rule")
    if met.status in (401, 403):
        return _refused(case, shown, met.status)
    return _met(case, shown, met, closed=closed)


@dataclass(frozen=True)
class Met:
    """What answered.

    Attributes:
        problem: Why it is no Prefect API; empty if it is one.
        status: What it answers who may use it.
        version: Its own; empty where it does not tell.
    """

    problem: str = ""
    status: int = 200
    version: str = ""


def _client(case: Case, url: str) -> httpx.Client:
    """A client of the API that signs in as the job will, with what was read from the key vault; with nothing else.

    Unencrypted it does not: a private address may be another machine here than in the cluster's network.
    """
    import ssl

    import httpx
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    headers: dict[str, str] = {}
    if not may_send(url, api.url or ""):
        case.secrets.clear()
    if key := case.secrets.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif login := case.secrets.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    trusted = ssl.create_default_context(cafile=api.ssl_cert_file or None)
    return httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT_S, verify=trusted)


def may_send(url: str, in_force: str) -> bool:
    """Say whether a key may go to an address from here: encrypted, or to the API that this machine uses anyway."""
    return urlsplit(url).scheme == "https" or urlsplit(url)[:2] == urlsplit(in_force)[:2]


def _asked(client: httpx.Client, *, cloud: bool) -> Met:
    health = client.get("/health")  # a server of one's own answers this without a login
    if not cloud and health.status_code not in (401, 403) and not _is_true(health):
        what = "a page" if "html" in health.headers.get("Content-Type", "") else str(health.status_code)
        return Met(problem=f"answers /health with {what}, which is no Prefect API")
    asked = client.post("/flow_runs/filter", json={"limit": 1})
    if not asked.is_success:
        problem = "" if asked.status_code in (401, 403) else f"answers {asked.status_code} when asked for flow runs"
        return Met(problem=problem, status=asked.status_code)
    told = client.get("/admin/version") if not cloud else None
    return Met(version=str(told.json()) if told is not None and told.is_success else "")


def _is_true(answer: httpx.Response) -> bool:
    return answer.is_success and answer.text.strip() == "true"


def _refused(case: Case, shown: str, status: int) -> Finding:
    settings = case.settings
    if case.secrets:
        return broken(
            f"{shown} refuses the key of the key vault ({status})",
            "store the right one there, without a line break at its end (az keyvault secret set --file)",
        )
    if settings.api_key_secret or settings.api_auth_secret:
        return fine(f"{shown} answers and asks for a key; whether it takes the vault's could not be tried from here")
    return broken(f"{shown} asks for a key ({status}), and a job would have none", _STORE)


def _met(case: Case, shown: str, met: Met, *, closed: bool) -> Finding:
    import prefect

    said = f"{shown} answers from here{' and takes the key' if case.secrets else ''}"
    said += f", version {met.version}" if met.version else ""
    if met.version and older(met.version, prefect.__version__):
        return warned(
            f"{said}, older than the jobs' {prefect.__version__}", f"bring the server to {prefect.__version__} or later"
        )
    keyed = case.settings.api_key_secret or case.settings.api_auth_secret
    if urlsplit(shown).scheme != "https" and keyed:
        return warned(f"{said}, but unencrypted: the key can be read on the way", "set api_url to an https:// address")
    network = getattr(case.cluster, "network_settings", None) if case.cluster is not None else None
    if closed and network is None:
        return warned(
            f"{said}, but by a private address, and nothing tells that the cluster is in its network",
            f"put the cluster into the network (az ml compute create --vnet-name --subnet), or {_REACH}",
        )
    return fine(f"{said}; whether the cluster's network lets a job through, only a job can tell")


def older(version: str, than: str) -> bool:
    """Say whether a version is an earlier one, by the numbers that both of them have."""
    ours, theirs = _numbers(version), _numbers(than)
    shared = min(len(ours), len(theirs))
    return ours[:shared] < theirs[:shared]


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()

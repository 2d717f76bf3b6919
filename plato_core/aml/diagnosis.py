"""What a job died of: what happened, the likely cause, what to do. A table of signs, read from the top."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from plato_core.report.text import cut

_TAIL = 5  # lines of the job's log that are shown
_LONGEST = 240  # characters of each


_TIME_LIMIT = "Cause: the time limit"
_RETRY = "Retry the flow run to go on with its sweep."


@dataclass(frozen=True)
class Evidence:
    """What is known of a job that ended, or never began.

    Attributes:
        status: Azure ML's word for its state, or "" for a job that is gone.
        code: The error's code, like `UserError/...`.
        message: The error's text.
        tail: The last lines of its log.
        ran: Whether it ever came to run.
        seconds: How long it ran, if that is known.
        timeout_seconds: The limit that it had.
        compute: The cluster's name.
        api_url: Where the job looked for the Prefect API.
        flow_state: The flow run's state: `Running`, `Pending`...
        way_on: How to go on with the sweep; by default a retry of the flow run.
        prefect: Whether the job talks to the Prefect API, so that it may be at fault.
    """

    status: str
    code: str = ""
    message: str = ""
    tail: Sequence[str] = ()
    ran: bool = True
    seconds: float | None = None
    timeout_seconds: int | None = None
    compute: str = ""
    api_url: str = ""
    flow_state: str = ""
    way_on: str = _RETRY
    prefect: bool = True


@dataclass(frozen=True)
class Diagnosis:
    """An end in three sentences.

    Attributes:
        happened: What is certain.
        cause: What is likely.
        advice: What to do.
        known: Whether a sign of the table was found.
    """

    happened: str
    cause: str
    advice: str
    known: bool = True

    @property
    def is_time_limit(self) -> bool:
        """Whether it ran into its time limit, which to the job looks as if it were cancelled."""
        return self.cause.startswith(_TIME_LIMIT)

    @property
    def message(self) -> str:
        """All of it, for the state of a flow run."""
        return " ".join(part for part in (self.happened, self.cause, self.advice) if part)


@dataclass(frozen=True)
class _Sign:
    pattern: str
    cause: str
    advice: str


# In the words of urllib3, which Azure's SDKs and MLflow use and Prefect does not; its retries are for answers as well.
_UNREACHED = (
    r"Max retries exceeded(?!.*(too many \d+ error|Read ?timed ?out|ReadTimeout))|Failed to resolve|getaddrinfo|"
    r"Name or service not known|Temporary failure in name resolution|NewConnectionError|ConnectTimeout|connect timeout|"
    r"Connection refused|No route to host|Network is unreachable"
)
# Of all its clouds: the workspace's API and the resource manager, storage, key vaults, the login.
_AZURE = (
    r"(?P<host>[\w.-]*\b(api\.azureml\.ms|api\.ml\.azure\.(us|cn)|"
    r"management\.(azure\.com|usgovcloudapi\.net|chinacloudapi\.cn)|"
    r"(blob|file|dfs)\.core\.(windows\.net|usgovcloudapi\.net|chinacloudapi\.cn)|"
    r"vault\.(azure\.net|usgovcloudapi\.net|azure\.cn)|login\.(microsoftonline\.(com|us)|chinacloudapi\.cn)))"
)

# The first that is found in the error or the log's last lines; the more particular come first.
_SIGNS = (
    _Sign(
        r"preempt|evicted|spot.{0,40}(reclaim|evict)|node.{0,60}(was|has been) (lost|reclaimed|deallocated)",
        "Likely cause: Azure took a low-priority node back (preemption).",
        f"{_RETRY} Use a dedicated cluster, or fewer nodes, if it happens often.",
    ),
    _Sign(
        r"lost communication with a remote daemon",  # Open MPI's words for a node that its mpirun misses
        "Likely cause: a node of the job was lost, and mpirun ended the others.",
        f"{_RETRY} With the launcher ray a job goes on without the node.",
    ),
    _Sign(
        r"quota|cores? limit|insufficient capacity|allocation ?failed|not enough (cores|capacity)|"
        r"maximum nodes|SkuNotAvailable|OperationNotAllowed",
        "Likely cause: quota or capacity. The cluster {compute} cannot get so many nodes of its size.",
        "Ask for fewer nodes (instance_count), another size or region, or more quota "
        "(Azure portal, Quotas, Machine learning).",
    ),
    _Sign(
        r"compute (target|cluster)?.{0,80}(not found|does ?n.t exist|was deleted)|ComputeNotFound|"
        r"no compute|compute.{0,40}is (in )?(failed|deleting)",
        "Likely cause: the name of the compute is wrong, or it was deleted.",
        "Set compute of the work pool or deployment to a cluster of the workspace (Studio, Compute).",
    ),
    _Sign(
        r"image ?build|docker ?file|failed to (pull|build)|pull access denied|manifest unknown|ImagePull|ErrImage|"
        r"environment.{0,60}(not found|failed|could not)|conda(Env)?.{0,40}(fail|error)|ResolvePackageNotFound|"
        r"No matching distribution",
        "Likely cause: the environment's image could not be built or pulled.",
        "Read the log azureml-logs/20_image_build_log.txt of the job in Studio, mend the environment, and "
        "check the setting environment.",
    ),
    _Sign(
        r"out of memory|OOM|oom-kill|MemoryError|Cannot allocate memory|exit(ed)?( with)?( status| exit)? code:? ?137|"
        r"signal (9|SIGKILL)|Killed$|OutOfMemoryError|No space left on device.{0,40}shm|/dev/shm",
        "Likely cause: out of memory on a node.",
        "Run fewer trials or env runners at once, take a larger machine, or raise shm_size if Ray's object store "
        "was full.",
    ),
    _Sign(
        r"No space left on device|DiskFull|disk is full",
        "Likely cause: a node's disk is full.",
        "Keep fewer checkpoints (keep_checkpoints) or take a machine with a larger disk.",
    ),
    _Sign(
        r"(exit(ed)?|status)( with)?( status)? code:? 2\b|"
        r"Ray.{0,30}version.{0,60}(differ|mismatch|but)|versions? (of Ray )?differ",
        "Likely cause: the job refused its settings, or its Ray is another version than the worker's.",
        "Read the last lines of the log; build the environment anew from deployments/aml if versions differ.",
    ),
    _Sign(
        r"so many Ray nodes|Ray nodes? (came|joined|of)|nodes? (did not|never) (come|join)|waiting for Ray nodes",
        "Likely cause: not all nodes of the job joined Ray in time.",
        "Raise node_wait_s, ask for fewer nodes, or try the other launcher (ray or mpi).",
    ),
    _Sign(
        rf"^(?=.*({_UNREACHED})).*?{_AZURE}",
        "Likely cause: no route from the cluster to {host}, one of Azure's own services.",
        "Have the cluster's network resolve that name (with private endpoints by their DNS zones) and its firewall "
        "let it pass.",
    ),
    _Sign(
        r"KeyVault|vault\.azure\.net|SecretNotFound|ForbiddenByPolicy|does not have secrets get permission",
        "Likely cause: the job could not read the Prefect API's key from the key vault.",
        "Give the cluster's managed identity the role Key Vault Secrets User, set identity, and check the "
        "secret's URL.",
    ),
    _Sign(
        r"\b(401|403)\b.{0,120}(prefect|/api)|(prefect|/api)\S*.{0,120}\b(401|403)\b|Unauthorized.{0,80}api",
        "Likely cause: the Prefect API refused the job's key.",
        "Check api_key_secret or api_auth_secret of the work pool, and the secret's value.",
    ),
    _Sign(
        r"AuthenticationError|CredentialUnavailable|AuthorizationFailed|AADSTS|ManagedIdentityCredential|"
        r"does not have (authorization|permission)",
        "Likely cause: missing rights. The job's identity may not do what it tried.",
        "Set identity of the work pool, and give that identity its roles on the workspace and its storage.",
    ),
    _Sign(
        r"^(?!.*ConnectionPool).*?(ConnectError|ConnectTimeout|All connection attempts failed|"
        r"Name or service not known|Temporary failure in name resolution|Connection refused|Failed to reach API|"
        r"no Prefect (server|API)|No route to host|Network is unreachable)",
        "Likely cause: no route from the cluster to the Prefect API at {api_url}.",
        "Set api_url to an address that the cluster's network reaches, and let the firewall pass it.",
    ),
    _Sign(
        rf"{_UNREACHED}|Connect(ion)?Error|All connection attempts failed",
        "Likely cause: the job could not connect to a host that it needs.",
        "See in the log which it is, such as a tracking store's, and have the cluster's network reach it.",
    ),
    _Sign(
        r"ModuleNotFoundError|ImportError|No module named",
        "Likely cause: the environment or the uploaded code lacks a package.",
        "Build the environment from deployments/aml, and see that .amlignore leaves no needed file behind.",
    ),
)
_NO_CAUSE = "No known cause stands in its error or its log."


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return what a job most likely died of."""
    happened = _happened(evidence)
    if evidence.status == "" or evidence.status == "NotResponding":
        lost = "deleted, or lost by Azure ML" if evidence.status == "" else "cut off from Azure ML, or its node died"
        return Diagnosis(happened, f"Likely cause: it was {lost}.", evidence.way_on)
    if _timed_out(evidence):
        return Diagnosis(
            happened,
            f"{_TIME_LIMIT} of {evidence.timeout_seconds} s.",
            f"Raise timeout_seconds, or have the sweep end before it by time_budget_s. {evidence.way_on}",
        )
    if evidence.status == "Canceled":
        return Diagnosis(happened, "Somebody cancelled it in Studio or by the Azure command line.", evidence.way_on)
    text = "\n".join((evidence.code, evidence.message, *evidence.tail))
    for sign in _SIGNS:
        if not evidence.prefect and "Prefect API" in sign.cause:
            continue
        if found := re.search(sign.pattern, text, re.IGNORECASE | re.MULTILINE):
            names = {"compute": evidence.compute, "api_url": evidence.api_url or "PREFECT_API_URL"}
            cause = sign.cause.format(**names, **found.groupdict())
            return Diagnosis(happened, cause, sign.advice.replace(_RETRY, evidence.way_on))
    if evidence.status == "Completed":
        return Diagnosis(
            happened, "Likely cause: the flow's process ended without its last report.", evidence.way_on, False
        )
    return Diagnosis(happened, _NO_CAUSE, "Read the whole log of the job in Studio.", known=False)


def _happened(evidence: Evidence) -> str:
    if evidence.status == "":
        return "The job no longer exists in Azure ML."
    verb = {
        "Failed": "failed",
        "Canceled": "was cancelled in Azure ML",
        "Completed": "ended",
        "NotResponding": "sent no sign of life for long",
    }.get(evidence.status, f"is {evidence.status}")
    when = "" if evidence.ran else " before it ran"
    while_ = f", while the flow run was {evidence.flow_state}" if evidence.flow_state else ""
    said = evidence.message or next((line for line in reversed(evidence.tail) if line), "")
    said = cut(said, _LONGEST)
    return f"The job {verb}{when}{while_}{f': {said.rstrip(chr(46))}' if said else ''}."


def _timed_out(evidence: Evidence) -> bool:
    if evidence.timeout_seconds is None or evidence.status not in ("Canceled", "Failed"):
        return False
    if re.search(r"time(d)? ?(out|limit)|exceeded.{0,40}(duration|timeout)", evidence.message, re.IGNORECASE):
        return True
    return evidence.seconds is not None and evidence.seconds >= evidence.timeout_seconds


def shown_tail(tail: Sequence[str]) -> list[str]:
    """Return the last lines of a log, fit to be shown beside a diagnosis."""
    return [cut(line, _LONGEST) for line in tail[-_TAIL:]]

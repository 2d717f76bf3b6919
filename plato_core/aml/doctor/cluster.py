"""The compute that is to run the jobs: what it is, how large, what it costs between them, and the quota behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, warned
from plato_core.aml.refusal import translated
from plato_core.report.text import counted, duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from azure.ai.ml.entities import AmlCompute

_MORE_QUOTA = "ask for fewer nodes, another size or region, or more quota (Azure portal, Quotas, Machine learning)"
_IN_STUDIO = "look at it in Studio, Compute"
_LOOK = "look in the Azure portal: Quotas, Machine learning"


def compute(case: Case) -> Finding:
    """See whether the compute is there, is a cluster, and has place for a job."""
    from azure.ai.ml.entities import AmlCompute
    from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

    name, nodes = case.settings.compute, case.settings.instance_count
    try:
        found = case.ml.compute.get(name)
    except ResourceNotFoundError:
        return broken(f"the workspace has no compute {name!r}", f"set compute to one of: {_clusters(case)}")
    except HttpResponseError as error:
        if error.status_code == 403:  # who may submit jobs need not be one who may look at computes
            return warned(f"whoever is signed in may not look at compute {name!r} (403)", _IN_STUDIO)
        raise
    if not isinstance(found, AmlCompute):
        instance = (found.type or "").lower() == "computeinstance"
        kind = "an instance for one person" if instance else f"of type {found.type}"
        return broken(f"{name!r} is no cluster but {kind}", f"set compute to one of: {_clusters(case)}")
    if found.provisioning_state not in (None, "Succeeded"):
        why = f" ({found.provisioning_errors})" if found.provisioning_errors else ""
        return broken(f"cluster {name!r} is {found.provisioning_state}{why}", _IN_STUDIO)
    most = found.max_instances or 0
    if nodes > most:
        return broken(
            f"{counted(nodes, 'node')} of a job, but cluster {name!r} grows to {most} at most",
            f"set instance_count to {most} or less, or raise the cluster's maximum "
            f"(az ml compute update --name {name} --max-instances {nodes})",
        )
    case.cluster = found
    return fine(f"cluster {name!r}: {found.size}, {counted(nodes, 'node')} of at most {most}")


def cost(case: Case) -> Finding:
    """See what is paid without a job, and whether nodes may be taken away."""
    found = _cluster(case)
    kept = found.min_instances or 0
    if kept:
        return warned(
            f"cluster {found.name!r} keeps {counted(kept, 'node')} without a job, which costs",
            f"az ml compute update --name {found.name} --min-instances 0",
        )
    idle = found.idle_time_before_scale_down
    after = f"; idle nodes go after {duration(float(idle))}" if idle else ""
    if is_low_priority(found):
        return fine(
            f"no node is kept without a job{after}; its nodes are low-priority ones, which Azure may take back: the "
            "job begins again and its sweep goes on from the last checkpoints"
        )
    return fine(f"no node is kept without a job{after}")


def quota(case: Case) -> Finding:
    """See whether the region lets the subscription have so many cores, where Azure tells it."""
    from azure.core.exceptions import AzureError

    found, nodes = _cluster(case), case.settings.instance_count
    low = is_low_priority(found)
    try:
        sizes = [_told(one) for one in case.ml.compute.list_sizes(location=case.region)]
        usages = [_told(one) for one in case.ml.compute.list_usage(location=case.region)]
    except AzureError as error:
        return warned(f"Azure does not tell it: {translated(error)}".rstrip("."), _LOOK)
    size = next((one for one in sizes if str(one.get("name")).lower() == str(found.size).lower()), None)
    if size is None:
        return warned(f"Azure lists no size {found.size} in {case.region}, so its cores are not known", _LOOK)
    limits = limits_of(usages, str(size.get("family") or ""), low_priority=low)
    if not limits:
        return warned(f"Azure lists no quota for {size.get('family')} in {case.region}", _LOOK)
    return judged(limits, nodes * int(size.get("vCPUs") or 0), nodes)


@dataclass(frozen=True)
class Limit:
    """A quota: how many cores there may be, and are."""

    name: str
    limit: int
    used: int


def limits_of(usages: Iterable[dict[str, Any]], family: str, *, low_priority: bool) -> list[Limit]:
    """Return the quotas that count for a family of machines: its own, and that of all families.

    Azure spells a family in one of two ways (`standardDSv2Family`, `Standard DSv2 Family Cluster Dedicated vCPUs`), and
    gives -1 where a family has no limit of its own, as for low-priority cores.

    Args:
        usages: As Azure lists them for a region.
        family: As it lists it with a machine's size.
        low_priority: Which kind of cores.
    """
    kind = "lowprioritycores" if low_priority else "dedicatedcores"
    found = []
    for usage in usages:
        parts = str(usage.get("type")).lower().split("/")
        name = usage.get("name") or {}
        if kind not in parts or int(usage.get("limit", -1)) < 0:
            continue
        if "vmfamily" in parts and _letters(family) not in {_family(str(name.get(one))) for one in name}:
            continue
        shown = str(name.get("localizedValue") or name.get("value"))
        found.append(Limit(shown, int(usage["limit"]), int(usage.get("currentValue") or 0)))
    return found


def judged(limits: list[Limit], cores: int, nodes: int) -> Finding:
    """Return whether so many cores fit into all of the quotas."""
    need = f"{counted(nodes, 'node')} of {cores // nodes} cores"
    tight = min(limits, key=lambda one: one.limit)
    if cores > tight.limit:
        return broken(f"{need}, but the quota {tight.name} is {tight.limit}", _MORE_QUOTA)
    full = min(limits, key=lambda one: one.limit - one.used)
    free = full.limit - full.used
    if cores > free:
        return warned(
            f"{need}, and of the quota {full.name}, {full.limit}, {full.used} are in use now",
            "a job waits until others let go of them, if not this cluster's own idle nodes are meant",
        )
    return fine(f"{need}, and {free} are free ({full.name}: {full.used} of {full.limit} in use)")


def is_low_priority(found: AmlCompute) -> bool:
    """Say whether Azure may take a cluster's nodes back."""
    return _letters(found.tier or "") == "lowpriority"


def _cluster(case: Case) -> AmlCompute:
    assert case.cluster is not None
    return case.cluster


def _clusters(case: Case) -> str:
    found = (one for one in case.ml.compute.list() if (one.type or "").lower() == "amlcompute")
    return ", ".join(sorted(one.name or "" for one in found)) or "none yet; make one with `az ml compute create`"


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _family(text: str) -> str:
    return re.sub(r"cluster(dedicated|lowpriority)?(vcpus|cores)$", "", _letters(text))


def _told(one: object) -> dict[str, Any]:
    """What Azure answered: the SDK's objects keep it under Azure's own names, beside empty fields of theirs."""
    return {name: value for name, value in vars(one).items() if value is not None}

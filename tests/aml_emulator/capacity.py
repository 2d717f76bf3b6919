"""What a region offers a subscription: the sizes of machines, and how many cores of each family it may use."""

from __future__ import annotations

import re
from typing import Any

from aml_emulator.cloud import LOCATION, PROVIDER, SUBSCRIPTION
from aml_emulator.messages import Answer, Request, ServiceError, as_json, no_route
from aml_emulator.state import Compute, State

# Name, family, cores. A family's name is spelt in one of two ways, as the service does.
SIZES = (
    ("Standard_D2_v2", "standardDv2Family", 2),
    ("Standard_NC6s_v3", "standardNCSv3Family", 6),
    ("Standard_ND96asr_v4", "Standard NDASv4_A100 Family", 96),
)
DEDICATED, LOW_PRIORITY = 100, 50  # cores, of all families together
_PATH = re.compile(rf"/subscriptions/([^/]+)/providers/{PROVIDER}/locations/([^/]+)/(usages|vmSizes)", re.IGNORECASE)


def is_capacity(request: Request) -> bool:
    """Whether a request is for a region of the resource manager, and not for a workspace."""
    return _PATH.fullmatch(request.path) is not None


def capacity(request: Request, state: State) -> Answer:
    """Answers with what there is, and how much of it is used."""
    found = _PATH.fullmatch(request.path)
    if found is None or request.method != "GET":
        raise no_route(request)
    if found[1] != SUBSCRIPTION or found[2].lower() != LOCATION:
        raise ServiceError(404, "ResourceNotFound", f"No such subscription or location: {found[1]}, {found[2]}")
    if found[3].lower() == "vmsizes":
        return as_json({"value": [_size(*one) for one in SIZES]})
    with state.changed:
        return as_json({"value": _usages(list(state.computes.values()))})


def _size(name: str, family: str, cores: int) -> dict[str, Any]:
    types = ["AmlCompute", "ComputeInstance"]
    return {"name": name, "family": family, "vCPUs": cores, "gpus": 0, "supportedComputeTypes": types}


def _usages(computes: list[Compute]) -> list[dict[str, Any]]:
    total = {
        "dedicatedCores": ("TotalDedicatedCores", "Total Cluster Dedicated Regional vCPUs", DEDICATED),
        "lowPriorityCores": ("TotalLowPriorityCores", "Total Cluster LowPriority Regional vCPUs", LOW_PRIORITY),
    }
    found = []
    for kind, (value, shown, limit) in total.items():
        of_kind = [one for one in computes if (one.priority == "LowPriority") == (kind == "lowPriorityCores")]
        used = sum(one.busy * _cores(one) for one in of_kind)
        found.append(_usage(f"{PROVIDER}/{kind}/usages", value, shown, used, limit))
        for name, family, cores in SIZES:
            own = [one for one in of_kind if one.vm_size.lower() == name.lower()]
            quotas = [one.quota for one in own if one.quota is not None]
            # A family has no limit of its own for low-priority cores: -1.
            limit = DEDICATED if kind == "dedicatedCores" else -1
            most = min(quotas) * cores if quotas else limit
            used = sum(one.busy for one in own) * cores
            shown = f"{family} Cluster {'Dedicated' if kind == 'dedicatedCores' else 'LowPriority'} vCPUs"
            found.append(_usage(f"{PROVIDER}/vmFamily/{kind}/usages", family, shown, used, most))
    return found


def _usage(kind: str, value: str, shown: str, used: int, limit: int) -> dict[str, Any]:
    return {
        "id": f"/subscriptions/{SUBSCRIPTION}/providers/{PROVIDER}/locations/{LOCATION}/usages/{value}",
        "type": kind,
        "unit": "Count",
        "currentValue": used,
        "limit": limit,
        "name": {"value": value, "localizedValue": shown},
    }


def _cores(compute: Compute) -> int:
    return next((cores for name, _, cores in SIZES if name.lower() == compute.vm_size.lower()), 0)

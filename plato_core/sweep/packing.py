"""How a population is laid over the slots of a machine or cluster."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Memory of one trial's process where nobody could measure it (see `footprint.py`). With a network of 2 x 64 and batches
# of 4096 steps it is 0.5 GB resident, 0.39 GB of it not shared (`Pss` in /proc/<pid>/smaps_rollup; Linux, ray 2.60.0,
# torch 2.13.0 for CPUs).
PROCESS_BYTES = 700 * 2**20
# Left for the driver, the raylet, the object store and the page cache.
MEMORY_FRACTION = 0.8
# Ray counts CPUs and GPUs in ten-thousandths, and takes whole numbers only from one on.
_STEPS = 10_000


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or this one.

    Attributes:
        cpus: CPUs that trials may use.
        gpus: GPUs that they may use.
        memory_bytes: Memory that they may use.
    """

    cpus: int
    gpus: float
    memory_bytes: float


@dataclass(frozen=True)
class Packing:
    """Who runs at the same time, and with how much.

    Attributes:
        slots: CPUs that the sweep may use.
        resident: Trials that live in memory at the same time.
        cpus_per_trial: CPUs allotted to each: a fraction where trials share one.
        gpus_per_trial: GPUs allotted to each.
    """

    slots: int
    resident: int
    cpus_per_trial: float
    gpus_per_trial: float

    def bundles(self, num_env_runners: int) -> list[dict[str, float]]:
        """Returns Ray's resource bundles of one trial: its own process, then each remote env runner."""
        processes = 1 + num_env_runners
        cpus = {"CPU": _ray_amount(self.cpus_per_trial / processes)}
        own = cpus | ({"GPU": self.gpus_per_trial} if self.gpus_per_trial else {})
        return [own, *(dict(cpus) for _ in range(num_env_runners))]

    def holds(self, nodes: Sequence[Node], num_env_runners: int) -> int:
        """Returns for how many of its trials some nodes have room; at most, as Ray may lay env runners out badly."""
        own, *others = self.bundles(num_env_runners)
        cpus = [node.cpus * _STEPS // max(1, round(own["CPU"] * _STEPS)) for node in nodes]
        homes = cpus
        if share := round(self.gpus_per_trial * _STEPS):
            gpus = [_on_gpus(int(_STEPS * node.gpus), share) for node in nodes]
            homes = [min(cpu, gpu) for cpu, gpu in zip(cpus, gpus, strict=True)]
        return min(sum(homes), sum(cpus) // (1 + len(others)))


def pack(
    population: int,
    nodes: Sequence[Node],
    *,
    max_cpus: int | None = None,
    max_gpus: float | None = None,
    num_env_runners: int,
    process_bytes: float = PROCESS_BYTES,
) -> Packing:
    """Keeps the whole population resident where memory allows, each trial with the largest share with which all fit.

    A trial that leaves its process pays 5-8 s of imports to come back, so sharing CPUs beats taking turns: 4 trials
    on 2 CPUs took 36-41 s resident and 133 s in turns.

    A share has to fit node by node, since no process has parts of two: 3 trials on 2 nodes of one CPU get 0.5 each, as
    with 0.6667 only one would fit on a node, and the third would wait for ever. Env runners may take the places beside
    GPUs that a later trial's own process needs, as Ray lays out one trial at a time: the shares are such that even then
    one is left. What memory takes is reckoned for nodes that are alike, as those of one cluster are.

    Args:
        population: Number of trials.
        nodes: The machines; together they have a CPU at least.
        max_cpus: CPUs that the sweep may use of them; None means all.
        max_gpus: GPUs that it may use of them; None means all.
        num_env_runners: Remote env-runner processes that each trial has beside its own.
        process_bytes: Memory of each of its processes.
    """
    processes = 1 + num_env_runners
    fitting = sum(int(node.memory_bytes * MEMORY_FRACTION // (process_bytes * processes)) for node in nodes)
    resident = max(1, min(population, fitting))
    all_cpus = sum(node.cpus for node in nodes)
    slots = max(1, all_cpus if max_cpus is None else min(all_cpus, max_cpus))
    cpus = [_STEPS * node.cpus for node in nodes]
    gpus = [int(_STEPS * node.gpus) if node.cpus else 0 for node in nodes]
    gpu_steps = sum(gpus) if max_gpus is None else min(sum(gpus), int(_STEPS * max_gpus))
    # Where there are GPUs, a trial's own process stands beside one; its env runners stand anywhere.
    homes = cpus if gpu_steps == 0 else [cpu if gpu else 0 for cpu, gpu in zip(cpus, gpus, strict=True)]

    def fits(share: int) -> bool:
        everybody = _places(cpus, share) >= resident * processes and share * resident * processes <= slots * _STEPS
        return everybody and _places(homes, share) > (resident - 1) * processes

    cpu_share = _largest(slots * _STEPS, fits)
    rooms = [cpu // max(1, cpu_share) for cpu in cpus]

    def gpu_fits(share: int) -> bool:
        beside = [_on_gpus(gpu, share) for gpu in gpus]
        return share * resident <= gpu_steps and not _all_taken(rooms, beside, resident - 1, processes)

    return Packing(
        slots=slots,
        resident=resident,
        cpus_per_trial=cpu_share / _STEPS * processes,
        gpus_per_trial=_largest(gpu_steps, gpu_fits) / _STEPS,
    )


def _ray_amount(amount: float) -> float:
    # Rounding up would leave the last trial out; 0.9999 / 3 is a little less than 0.3333.
    steps = math.floor(amount * _STEPS + 1e-6)
    return (steps - steps % _STEPS if steps >= _STEPS else steps) / _STEPS


def _places(amounts: Sequence[int], share: int) -> int:
    return sum(amount // share for amount in amounts)


def _on_gpus(gpus: int, share: int) -> int:
    """How many shares some GPUs have room for: a fraction is one of a single GPU."""
    return gpus // share if share >= _STEPS else gpus // _STEPS * (_STEPS // share) + gpus % _STEPS // share


def _all_taken(rooms: Sequence[int], gpus: Sequence[int], trials: int, processes: int) -> bool:
    """Whether so many trials, laid out at worst, leave no place beside a GPU for a further one's own process.

    Args:
        rooms: Processes that each node has room for.
        gpus: Those of them that find a share of a GPU.
        trials: That are laid out.
        processes: Of each; one of them needs a GPU, and the others may be anywhere.
    """
    # A node is taken when its GPUs are, which only trials' own processes do, or when its room is, by whatever process.
    # Own processes spent on GPUs -> the room that all other nodes have.
    room_left = {0: 0}
    for room, gpu in zip(rooms, gpus, strict=True):
        if min(room, gpu) == 0:
            continue
        after: dict[int, int] = {}
        for own, others in room_left.items():
            for spent, left in ((own, others + room), (own + gpu, others)):
                if spent <= trials:
                    after[spent] = min(left, after.get(spent, left))
        room_left = after
    return any(own + others <= trials * processes for own, others in room_left.items())


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest amount that Ray takes and that fits, in steps; smaller ones than a fitting one fit too."""
    share = bisect.bisect_left(range(1, limit + 1), True, key=lambda step: not fits(step))
    return share - share % _STEPS if share >= _STEPS else share

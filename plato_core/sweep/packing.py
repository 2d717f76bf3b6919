"""How a population is laid over the slots of a machine or cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Memory of one trial's process. With a network of 2 x 64 and batches of 4096 steps it is 0.5 GB resident, 0.39 GB of it
# not shared (`Pss` in /proc/<pid>/smaps_rollup; Linux, ray 2.60.0, torch 2.13.0 for CPUs); the rest is for larger ones.
PROCESS_BYTES = 700 * 2**20
# Left for the driver, the raylet, the object store and the page cache.
MEMORY_FRACTION = 0.8


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


def pack(
    population: int,
    *,
    slots: int,
    gpus: float,
    memory_bytes: float,
    num_env_runners: int,
) -> Packing:
    """Keeps the whole population resident where memory allows, and shares the slots evenly.

    A trial that leaves its process pays 5-8 s of imports to come back, so sharing CPUs beats taking turns: 4 trials
    on 2 CPUs took 36-41 s resident and 133 s in turns.

    Args:
        population: Number of trials.
        slots: CPUs that the sweep may use.
        gpus: GPUs that it may use.
        memory_bytes: Memory available to it.
        num_env_runners: Remote env-runner processes that each trial has beside its own.
    """
    processes = 1 + num_env_runners
    fitting = int(memory_bytes * MEMORY_FRACTION // (PROCESS_BYTES * processes))
    resident = max(1, min(population, fitting))
    return Packing(
        slots=slots,
        resident=resident,
        cpus_per_trial=_ray_amount(slots / resident / processes) * processes,
        gpus_per_trial=_ray_amount(gpus / resident),
    )


def _ray_amount(amount: float) -> float:
    # Ray takes whole numbers from 1 on, and four decimals below; rounding up would leave the last trial out.
    return float(math.floor(amount)) if amount >= 1 else math.floor(amount * 10_000) / 10_000

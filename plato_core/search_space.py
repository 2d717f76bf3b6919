"""Search spaces: where a population starts, and PBT's moves from there.

The moves are those of Population Based Training (Jaderberg et al. 2017, arXiv 1711.09846): resample, or
perturb by a factor of 1.2 or 0.8. Other than in Ray's own PBT no value ever leaves its distribution, integers
stay integers, and a minibatch stays within its batch.
"""

import random
from collections.abc import Mapping
from typing import Any

from plato_core.distributions import (
    DOWN,
    UP,
    Choice,
    Distribution,
    Integer,
    LogUniform,
    Uniform,
    Value,
    clamp,
    contains,
    is_distribution,
    is_number,
    parse,
    parse_start,
    perturb,
    sample,
)
from plato_core.names import BATCH, MINIBATCH

__all__ = [
    "Choice",
    "Distribution",
    "Integer",
    "LogUniform",
    "Uniform",
    "Value",
    "clamp",
    "contains",
    "explore",
    "initial_population",
    "is_distribution",
    "parse",
    "parse_start",
    "perturb",
    "repair",
    "sample",
    "unrepairable",
]


def explore(
    values: Mapping[str, Any],
    mutations: Mapping[str, Distribution],
    resample_probability: float,
    rng: random.Random,
) -> tuple[dict[str, Any], dict[str, str]]:
    """PBT's explore step on the values that a trial takes over from its donor.

    Args:
        values: The donor's hyperparameters by canonical name; those that are not mutated are carried over.
        mutations: What may change, and within what.
        resample_probability: Chance of a fresh draw instead of a perturbation, for each value by itself.
        rng: Source of randomness; the result depends on its state alone, not on the order of the mappings.

    Returns:
        The new values, and what was done to each mutated one: `resample`, `* 1.2`, `* 0.8`, `shift left` or
        `shift right`, followed by `, fitted to the batch` where batch and minibatch had to be reconciled.
    """
    new, operations = dict(values), {}
    for name in sorted(mutations):
        distribution = mutations[name]
        fresh, up = rng.random() < resample_probability, rng.random() < 0.5
        if fresh or name not in values:
            new[name], operations[name] = sample(distribution, rng), "resample"
            continue
        new[name] = perturb(distribution, values[name], up)
        if isinstance(distribution, Choice):
            operations[name] = "shift right" if up else "shift left"
        else:
            operations[name] = f"* {UP if up else DOWN}"
    fitted = repair(new, mutations)
    for name in operations:
        if fitted[name] != new[name]:
            operations[name] += ", fitted to the batch"
    return fitted, operations


def initial_population(
    hyperparameters: Mapping[str, Any],
    mutations: Mapping[str, Distribution],
    population: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the starting hyperparameters of each trial.

    Args:
        hyperparameters: Starting points: a fixed value, or a distribution that each trial draws its own from.
        mutations: What PBT may change. A name that has no starting point starts from a draw of its mutation.
        population: How many trials.
        seed: The same seed gives the same values. Each value has its own stream, so that trial i's values
            depend neither on the size of the population nor on the other hyperparameters.
    """
    spaces: dict[str, Any] = {**mutations, **hyperparameters}
    movable = {**{k: v for k, v in hyperparameters.items() if is_distribution(v)}, **mutations}
    trials = []
    for index in range(population):
        values = {
            name: sample(space, random.Random(f"{seed}/{index}/{name}")) if is_distribution(space) else space
            for name, space in sorted(spaces.items())
        }
        trials.append(repair(values, movable))
    return trials


def repair(values: Mapping[str, Any], mutations: Mapping[str, Distribution]) -> dict[str, Any]:
    """Return `values` with the minibatch no larger than its batch, each still within its mutation.

    The minibatch is lowered first; only if its own bound forbids that is the batch raised. What has no
    mutation is never moved, so a pair that `unrepairable` objects to comes back as far as it can be repaired.
    """
    new = dict(values)
    batch: Any = new.get(BATCH)
    minibatch: Any = new.get(MINIBATCH)
    if not is_number(batch) or not is_number(minibatch) or minibatch <= batch:
        return new
    if MINIBATCH in mutations:
        new[MINIBATCH] = minibatch = _at_most(mutations[MINIBATCH], batch)
    if minibatch > batch and BATCH in mutations:
        new[BATCH] = _at_least(mutations[BATCH], minibatch)
    return new


def unrepairable(hyperparameters: Mapping[str, Any], mutations: Mapping[str, Distribution]) -> str | None:
    """Say why some minibatch of this space could fit into no batch of it; None if each can be made to.

    The message names both values, and what to change.
    """
    if not all(name in hyperparameters or name in mutations for name in (BATCH, MINIBATCH)):
        return None
    start = {name: hyperparameters.get(name, mutations.get(name)) for name in (BATCH, MINIBATCH)}
    # A draw that no mutation can correct later may still be corrected at the start, where both are drawn.
    later = {name: mutations.get(name, start[name]) for name in start}
    pairs = [("", _smallest(start[MINIBATCH]), _largest(start[BATCH]))]
    if MINIBATCH in mutations or BATCH in mutations:
        fixed_minibatch = MINIBATCH not in mutations
        minibatch = _largest(later[MINIBATCH]) if fixed_minibatch else _smallest(later[MINIBATCH])
        batch = _largest(later[BATCH]) if BATCH in mutations else _smallest(later[BATCH])
        pairs.append(("mutated ", minibatch, batch))
    for kind, minibatch, batch in pairs:
        if minibatch is not None and batch is not None and minibatch > batch:
            return (
                f"a {kind}{MINIBATCH} of {minibatch} cannot fit into a {BATCH} of {batch}; "
                f"lower {MINIBATCH} or raise {BATCH}"
            )
    return None


def _numbers(space: Any) -> list[Any]:
    candidates = space.values if isinstance(space, Choice) else [space]
    return [value for value in candidates if is_number(value)]


def _smallest(space: Any) -> Any:
    if isinstance(space, Uniform | LogUniform | Integer):
        return space.low
    return min(_numbers(space), default=None)


def _largest(space: Any) -> Any:
    if isinstance(space, Uniform | LogUniform | Integer):
        return space.high
    return max(_numbers(space), default=None)


def _at_most(distribution: Distribution, limit: Any) -> Any:
    if isinstance(distribution, Choice):
        return max((v for v in _numbers(distribution) if v <= limit), default=_smallest(distribution))
    return clamp(distribution, limit)


def _at_least(distribution: Distribution, limit: Any) -> Any:
    if isinstance(distribution, Choice):
        return min((v for v in _numbers(distribution) if v >= limit), default=_largest(distribution))
    return clamp(distribution, limit)

"""Canonical names of hyperparameters, and the nearest known name to a misspelled one.

The canonical names are those that users filter and compare by in MLflow; RLlib's current names are aliases.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

ALIASES: dict[str, str] = {
    "num_epochs": "num_sgd_iter",
    "minibatch_size": "sgd_minibatch_size",
    "train_batch_size_per_learner": "train_batch_size",
    "num_env_runners": "num_workers",
    "lambda_": "lambda",
}
"""RLlib's name of a hyperparameter -> the canonical one, where they differ."""

BATCH = "train_batch_size"
MINIBATCH = "sgd_minibatch_size"

T = TypeVar("T")


def canonical(name: str) -> str:
    """Return the canonical form of a hyperparameter's name; a name that is no alias is returned as it is."""
    return ALIASES.get(name, name)


def canonicalise(values: Mapping[str, T]) -> dict[str, T]:
    """Return `values` under canonical names, in their order.

    Raises:
        ValueError: If an alias and its canonical name are both given.
    """
    result: dict[str, T] = {}
    source: dict[str, str] = {}
    for name, value in values.items():
        key = canonical(name)
        if key in result:
            raise ValueError(f"{source[key]} and {name} are two names of one thing; give one of them")
        result[key], source[key] = value, name
    return result


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to `name`, letter case and `-`/`_` aside; None if none is near."""
    folded = {_fold(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_fold(name), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean x?)"` for the nearest known name, or an empty string."""
    match = nearest(name, known)
    return f" (did you mean {match}?)" if match is not None else ""


def _fold(name: str) -> str:
    return name.lower().replace("-", "_")

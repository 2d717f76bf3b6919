"""What must hold between the settings of a sweep; each rule raises a `Problem` that names the way out."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from plato_core.config_errors import Problem, show
from plato_core.names import BATCH, MINIBATCH, canonical, canonicalise, did_you_mean
from plato_core.search_space import (
    Choice,
    Distribution,
    Integer,
    LogUniform,
    Uniform,
    contains,
    is_distribution,
    parse,
    parse_start,
    unrepairable,
)
from plato_core.training import schema
from plato_core.training.metrics import (
    CONTRACT_METRICS,
    HP_PREFIX,
    LEARNER_METRICS,
    LEARNER_METRICS_OF,
    MAX_TUNED_VALUES,
)

if TYPE_CHECKING:
    from plato_core.config import SweepConfig

_OWN_FIELDS = {
    "env": "env_name",
    "env_config": "env_config",
    "num_workers": "num_env_runners",
    "num_cpus": "num_cpus",
    "num_gpus": "num_gpus",
    "seed": "seed",
}
"""Names that RLlib's config has too, but that a sweep sets with a setting of its own."""


def read_hyperparameters(value: Any) -> Any:
    """Parse starting points, under canonical names; an entry that is null is left out."""
    return _read("hyperparameters", value, parse_start)


def read_mutations(value: Any) -> Any:
    """Parse mutations, under canonical names; an entry that is null is left out."""
    return _read("mutations", value, parse)


def _read(field: str, value: Any, reader: Callable[[Any], Any]) -> Any:
    if not isinstance(value, Mapping):
        return value
    result = {}
    for name, item in value.items():
        if item is None:
            continue
        try:
            result[str(name)] = reader(item)
        except ValueError as error:
            raise Problem((field, str(name)), str(error)) from None
    try:
        return canonicalise(result)
    except ValueError as error:
        raise Problem((field,), str(error)) from None


def complete(data: Mapping[str, Any]) -> dict[str, Any]:
    """Add the other one of batch and minibatch, at RLlib's default, where only one is set or tuned.

    The two depend on each other, so neither can be perturbed without knowing the other.
    """
    starts = data.get("hyperparameters")
    if starts is not None and not isinstance(starts, Mapping):
        return dict(data)
    given = {
        canonical(str(name))
        for values in (starts, data.get("mutations"))
        if isinstance(values, Mapping)
        for name, value in values.items()
        if value is not None
    }
    missing = {BATCH, MINIBATCH} - given
    algorithm = data.get("algorithm", "PPO")
    if len(missing) != 1 or algorithm not in schema.algorithms():
        return dict(data)
    name = missing.pop()
    default = schema.default(algorithm, name) if schema.has_key(algorithm, name) else None
    if default is None:
        return dict(data)
    return {**data, "hyperparameters": {**(starts or {}), name: default}}


def refuse_password(uri: str | None) -> str | None:
    """Return the tracking URI, unless it carries a password; that is not repeated in the message."""
    if uri is None:
        return None
    try:
        parts = urlsplit(uri)
        # A lone user name may be a token (`https://<token>@host`).
        secret = bool(parts.password) or (parts.scheme in ("http", "https") and bool(parts.username))
    except ValueError:
        raise Problem(("tracking_uri",), "this is no URI; give one such as https://host:5000") from None
    names = {name.lower() for name, _ in parse_qsl(parts.query)}
    if secret or any(
        word in name for name in names for word in ("password", "passwd", "pwd", "token", "secret", "key")
    ):
        way_out = (
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            if parts.scheme in ("http", "https")
            else "PGPASSWORD or ~/.pgpass"
            if parts.scheme.startswith("postgres")
            else "the database driver's own option file"
        )
        raise Problem(
            ("tracking_uri",),
            f"this {parts.scheme} URI carries a password or token, and secrets stay out of parameters; "
            f"take it out and set {way_out} instead",
        )
    return uri


def check(config: "SweepConfig") -> None:
    """Check everything that concerns more than one setting, or the algorithm's own names.

    Raises:
        Problem: The first rule that does not hold.
    """
    for rule in (
        _known_algorithm,
        _some_end,
        _local_ray,
        _whole_iterations,
        _plain_folders,
        _known_names,
        _possible_values,
        _starts_inside,
        _batches_fit,
        _something_to_mutate,
        _known_metrics,
    ):
        rule(config)


def _known_algorithm(config: "SweepConfig") -> None:
    known = schema.algorithms()
    if config.algorithm not in known:
        hint = did_you_mean(config.algorithm, known)
        raise Problem(("algorithm",), f"{config.algorithm!r} is not known{hint}; give {' or '.join(known)}")


def _some_end(config: "SweepConfig") -> None:
    if config.stop_reward is None and config.max_iterations is None and config.time_budget_s is None:
        raise Problem((), "this sweep would never end; give --stop-reward, --max-iterations or --time-budget-s")


def _local_ray(config: "SweepConfig") -> None:
    if config.test_local and config.ray_address is not None:
        raise Problem(
            ("ray_address",),
            f"{config.ray_address!r} cannot go with --test-local, which runs on a Ray of this machine; "
            "leave out one of the two",
        )
    if config.compute == "aml" and (config.test_local or config.ray_address is not None or config.ray_nodes):
        raise Problem(
            ("compute",),
            "an Azure ML job brings its own Ray; leave out --test-local, --ray-address and --ray-nodes (a small sweep "
            "is --preset test-local, more nodes are --job-variable instance_count=2)",
        )
    if config.ray_address is None and (config.ray_nodes or 1) > 1:
        raise Problem(
            ("ray_nodes",),
            f"{config.ray_nodes} nodes are possible on a Ray cluster only; name it with --ray-address, "
            "or leave this out for a Ray of this machine",
        )


def _whole_iterations(config: "SweepConfig") -> None:
    if config.perturbation_unit != "iterations":
        return
    for name in ("perturbation_interval", "checkpoint_interval"):
        value = getattr(config, name)
        if value is not None and (value < 1 or value != int(value)):
            raise Problem(
                (name,),
                f"{value} iterations are not possible; give a whole number of at least 1, "
                "or perturbation_unit: seconds",
            )


def _plain_folders(config: "SweepConfig") -> None:
    for name in ("storage_path", "local_path"):
        value = getattr(config, name)
        if "://" in value:
            raise Problem((name,), f"{value!r} is a URI; give a folder of this machine")


def _known_names(config: "SweepConfig") -> None:
    known = schema.keys(config.algorithm)
    for field in ("hyperparameters", "mutations"):
        for name in getattr(config, field):
            if name in known:
                continue
            if name in _OWN_FIELDS:
                text = f"a sweep has a setting of its own for this: {_OWN_FIELDS[name]}"
            else:
                hint = did_you_mean(name, known)
                text = f"{config.algorithm} has no hyperparameter {name!r}{hint}; it has {', '.join(known)}"
            raise Problem((field, name), text)
    if len(config.mutations) > MAX_TUNED_VALUES:
        raise Problem(
            ("mutations",),
            f"{len(config.mutations)} tuned values are too many; at most {MAX_TUNED_VALUES} can be tracked",
        )


def _possible_values(config: "SweepConfig") -> None:
    for field in ("hyperparameters", "mutations"):
        for name, value in getattr(config, field).items():
            usual = schema.default(config.algorithm, name)
            if name in (BATCH, MINIBATCH) and usual is None:
                usual = 0  # unset in RLlib, and a size all the same
            problem = _not_possible(usual, value)
            if problem is not None:
                raise Problem((field, name), problem)
            if name in (BATCH, MINIBATCH) and _least(value) < 1:
                raise Problem((field, name), f"{_least(value)} is not possible; give at least 1")


def _not_possible(usual: Any, value: Any) -> str | None:
    """Say why `value` cannot stand where RLlib's default is `usual`."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not possible; give a finite number"
    whole = isinstance(usual, int) and not isinstance(usual, bool)
    number = whole or isinstance(usual, float)
    if isinstance(value, Uniform | LogUniform | Integer):
        if isinstance(usual, bool):
            return "this is true or false; give a list to choose from"
        if whole and not isinstance(value, Integer):
            return f"{value.type} gives fractions, and this is a whole number; give type: integer"
        return None
    items: list[Any] = list(value.values) if isinstance(value, Choice) else [value]
    for item in items:
        if isinstance(usual, bool) and not isinstance(item, bool):
            return f"{show(item)} is not possible; give true or false"
        if number and isinstance(item, bool | str | dict):
            return f"{show(item)} is not possible; give a number"
        if whole and isinstance(item, float | list):
            return f"{show(item)} is not possible; give a whole number"
    return None


def _least(value: Any) -> Any:
    if isinstance(value, Choice):
        return min(v for v in value.values if not isinstance(v, str))
    return value.low if is_distribution(value) else value


def _starts_inside(config: "SweepConfig") -> None:
    for name, mutation in config.mutations.items():
        outside = starts_outside(config.hyperparameters.get(name), mutation)
        if outside is not None:
            raise Problem(
                ("hyperparameters", name),
                f"{show(outside)} starts outside its mutation, {describe(mutation)}; "
                f"move it, widen the mutation, or take that away with mutations: {{{name}: null}}",
            )


def starts_outside(start: Any, mutation: Distribution) -> Any:
    """Return a value of the starting point that the mutation could never give; None if there is none."""
    if start is None:
        return None
    if not is_distribution(start):
        ends = [start]
    elif isinstance(start, Choice):
        ends = list(start.values)
    elif isinstance(mutation, Choice):
        ends = [start.low, start.high, (start.low + start.high) / 2]
    else:
        ends = [start.low, start.high]
    return next((value for value in ends if not contains(mutation, value)), None)


def describe(distribution: Distribution) -> str:
    """Return a distribution's type and bounds, or values, in words."""
    if isinstance(distribution, Choice):
        return f"one of {', '.join(map(str, distribution.values))}"
    return f"{distribution.type} from {distribution.low} to {distribution.high}"


def _batches_fit(config: "SweepConfig") -> None:
    problem = unrepairable(config.hyperparameters, config.mutations)
    if problem is not None:
        field = "mutations" if MINIBATCH in config.mutations else "hyperparameters"
        raise Problem((field, MINIBATCH), problem)


def _something_to_mutate(config: "SweepConfig") -> None:
    if config.scheduler == "pbt" and config.num_tune_samples > 1 and not config.mutations:
        raise Problem(
            ("mutations",),
            f"pbt with {config.num_tune_samples} trials of {config.algorithm} has nothing to mutate; "
            "give mutations, such as {lr: {type: loguniform, low: 1e-5, high: 1e-3}}",
        )


def _known_metrics(config: "SweepConfig") -> None:
    learner = LEARNER_METRICS_OF.get(config.algorithm, LEARNER_METRICS)
    known = (*CONTRACT_METRICS, *learner, *(f"{HP_PREFIX}{name}" for name in config.mutations))
    for field, name in (("rank_metric", config.rank_metric_name), ("metric", config.scheduler_metric_name)):
        if name not in known:
            hint = did_you_mean(name, known)
            raise Problem((field,), f"{name!r} is not a metric{hint}; there are {', '.join(known)}")

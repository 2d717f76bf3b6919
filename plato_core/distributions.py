"""Typed distributions with bounds: read, sample, clamp, perturb."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from plato_core.config_errors import explain_distribution
from plato_core.names import did_you_mean

Value = bool | int | float | str
Scalar = Annotated[bool | int | FiniteFloat | str, Field(union_mode="smart")]

UP, DOWN = 1.2, 0.8


class _Distribution(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Uniform(_Distribution):
    """A real number, uniform in [low, high]."""

    type: Literal["uniform"] = "uniform"
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


class LogUniform(_Distribution):
    """A positive real number whose logarithm is uniform in [log low, log high]."""

    type: Literal["loguniform"] = "loguniform"
    low: Annotated[FiniteFloat, Field(gt=0)]
    high: FiniteFloat

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


class Integer(_Distribution):
    """A whole number, uniform from low to high, both included."""

    type: Literal["integer"] = "integer"
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


class Choice(_Distribution):
    """One of the listed values, each as likely; perturbing steps to a neighbour in the order given."""

    type: Literal["choice"] = "choice"
    values: Annotated[tuple[Scalar, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for i, value in enumerate(self.values):
            if _index(self.values[:i], value) is not None:
                raise ValueError(f"choice lists {value!r} twice")
        return self


Distribution = Annotated[Uniform | LogUniform | Integer | Choice, Field(discriminator="type")]
DISTRIBUTIONS: dict[str, type[BaseModel]] = {
    "uniform": Uniform,
    "loguniform": LogUniform,
    "integer": Integer,
    "choice": Choice,
}
_ALL_FIELDS = {name for cls in DISTRIBUTIONS.values() for name in cls.model_fields}
_FORMS = "{type: uniform|loguniform|integer, low: ..., high: ...} or {type: choice, values: [...]}"


def parse(value: Any) -> Distribution:
    """Read a distribution: `{type: uniform, low: 0.9, high: 1.0}`, or a plain list for a choice.

    Raises:
        ValueError: With one line that says what is wrong and what is allowed.
    """
    if isinstance(value, _Distribution):
        return value  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        value = {"type": "choice", "values": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is no distribution; give {_FORMS}, or a list to choose from")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in DISTRIBUTIONS:
        hint = did_you_mean(kind, DISTRIBUTIONS) if isinstance(kind, str) else ""
        raise ValueError(f"type {kind!r} is no distribution{hint}; give {_FORMS}")
    cls = DISTRIBUTIONS[kind]
    try:
        return cls.model_validate(dict(value))  # type: ignore[return-value]
    except ValidationError as error:
        fields = [name for name in cls.model_fields if name != "type"]
        raise ValueError(explain_distribution(error, value, fields)) from None


def parse_start(value: Any) -> Any:
    """Read a starting point: a distribution, a list of plain values (a choice), or a fixed value.

    A list that holds lists is a fixed value too, as RLlib's schedules are: `[[0, 1.0], [10000, 0.05]]`.
    """
    if isinstance(value, list | tuple) and not any(isinstance(item, list | tuple | dict) for item in value):
        return parse(value)
    looks_like_one = isinstance(value, Mapping) and "type" in value and set(value) <= _ALL_FIELDS
    return parse(value) if looks_like_one else value


def is_distribution(value: object) -> bool:
    """Whether `value` is a distribution, rather than a fixed value."""
    return isinstance(value, _Distribution)


def sample(distribution: Distribution, rng: random.Random) -> Value:
    """Draw a value."""
    match distribution:
        case Uniform(low=low, high=high):
            return clamp(distribution, rng.uniform(low, high))
        case LogUniform(low=low, high=high):
            return clamp(distribution, math.exp(rng.uniform(math.log(low), math.log(high))))
        case Integer(low=low, high=high):
            return rng.randint(low, high)
        case Choice(values=values):
            return rng.choice(values)


def clamp(distribution: Distribution, value: Any) -> Value:
    """Return the value of the distribution that is nearest to `value`.

    Integers come back as `int`. A choice that does not list `value` gives the nearest listed number, the
    first of equals; where nothing can be compared (text, NaN), the first value listed. NaN gives the low
    bound of a range.
    """
    if isinstance(distribution, Choice):
        return distribution.values[_nearest_index(distribution.values, value)]
    low, high = distribution.low, distribution.high
    if not is_number(value) or math.isnan(value):
        return low
    bounded = min(max(value, low), high)
    return round(bounded) if isinstance(distribution, Integer) else float(bounded)


def contains(distribution: Distribution, value: Any) -> bool:
    """Whether `value` is one that the distribution can give."""
    if isinstance(distribution, Choice):
        return _index(distribution.values, value) is not None
    if not is_number(value) or not math.isfinite(value):
        return False
    if isinstance(distribution, Integer) and value != int(value):
        return False
    return distribution.low <= value <= distribution.high


def perturb(distribution: Distribution, value: Any, up: bool) -> Value:
    """Return `value` moved up (x1.2) or down (x0.8) and kept within the distribution.

    An integer moves by at least 1 unless it stands at the bound. A choice moves to the right (up) or left
    neighbour of the value, or of the nearest listed one; at either end it stays. A number of a negative range
    moves by its size, so that up is always the larger.
    """
    start = clamp(distribution, value)
    if isinstance(distribution, Choice):
        index = _nearest_index(distribution.values, start) + (1 if up else -1)
        return distribution.values[min(max(index, 0), len(distribution.values) - 1)]
    assert isinstance(start, int | float)
    step = abs(start) * (UP - 1 if up else DOWN - 1)
    if isinstance(distribution, Integer):
        step = max(1, round(step)) if up else min(-1, round(step))
    return clamp(distribution, start + step)


def is_number(value: Any) -> bool:
    """Whether `value` is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _index(values: Sequence[Any], value: Any) -> int | None:
    """Position of `value`; True is not 1 here, while 1 and 1.0 are the same."""
    for i, candidate in enumerate(values):
        if candidate == value and isinstance(candidate, bool) == isinstance(value, bool):
            return i
    return None


def _nearest_index(values: Sequence[Any], value: Any) -> int:
    found = _index(values, value)
    if found is not None:
        return found
    distances = [abs(v - value) if is_number(v) and is_number(value) else math.inf for v in values]
    return min(range(len(values)), key=lambda i: math.inf if math.isnan(distances[i]) else distances[i])


def _check_order(low: float, high: float) -> None:
    if not low < high:
        reason = "are the same, which leaves nothing to tune" if low == high else "are reversed"
        raise ValueError(f"bounds {reason}: low {low} must be less than high {high}")

"""One line for each thing that can be wrong in a configuration: where, the value, what is allowed."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from plato_core.errors import ConfigError
from plato_core.names import did_you_mean

Label = Callable[[tuple[str, ...]], str]
"""Says where a value came from, given its path in the configuration: `("mutations", "lr")`."""


class Problem(ValueError):
    """What is wrong with one value of a configuration, said in full.

    Args:
        path: The value's path in the configuration, from the field's name on.
        message: The value, what is allowed, and the way out.
    """

    def __init__(self, path: Iterable[str], message: str) -> None:
        super().__init__(message)
        self.path = tuple(path)


def dotted(path: tuple[str, ...]) -> str:
    """Label a value by its path alone: `mutations.lr`."""
    return ".".join(path)


def config_error(error: ValidationError, model: type[BaseModel], label: Label = dotted) -> ConfigError:
    """Turn pydantic's error into one line: the first thing that is wrong, and how many more there are."""
    details = error.errors(include_url=False)
    # Below a name of a mapping pydantic tells of each type that was tried: to a user that is one mistake.
    places = {tuple(map(str, item["loc"][:2])) for item in details}
    first = details[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Problem):
        path, text = cause.path, str(cause)
    else:
        path = tuple(str(part) for part in first["loc"][:2])
        text = _explain(first, model)
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    where = f"{label(path)}: " if path else ""
    return ConfigError(f"{where}{text}{more}")


def _explain(details: ErrorDetails, model: type[BaseModel]) -> str:
    name = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] == "extra_forbidden":
        return f"there is no such setting{did_you_mean(name, model.model_fields)}"
    if details["type"] == "value_error":
        return str(details.get("ctx", {}).get("error"))
    field = model.model_fields.get(name)
    if field is None:
        return details["msg"]
    value = details["input"]
    if len(details["loc"]) > 1:
        plain = "text, finite numbers, true, false, and lists and mappings of them"
        return f"{show(value)} is not possible; give plain values: {plain}"
    suggestion = ""
    if isinstance(value, str) and (options := _options(field)):
        suggestion = did_you_mean(value, options)
    return f"{show(value)} is not possible; give {allowed(field)}{suggestion}"


def show(value: Any) -> str:
    """Return a value as a user would write it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def allowed(field: FieldInfo) -> str:
    """Say in words what a field accepts, from its type and its bounds."""
    types = set(get_args(field.annotation) or (field.annotation,))
    if get_origin(field.annotation) is dict:
        return "a mapping of names to values"
    if options := _options(field):
        text = " or ".join(options)
    elif bool in types:
        text = "true or false"
    elif int in types:
        text = "a whole number"
    elif float in types:
        text = "a number"
    else:
        text = "text"
    words = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    bounds = [
        f"{words[key]} {limit}"
        for item in field.metadata
        for key, limit in ((key, getattr(item, key, None)) for key in words)
        if limit is not None
    ]
    if any(getattr(item, "min_length", None) for item in field.metadata):
        text += " that is not empty"
    if bounds:
        text += ", " + " and ".join(bounds)
    return text + (", or nothing" if type(None) in types else "")


def _options(field: FieldInfo) -> tuple[str, ...]:
    """The values of a `Literal` field, itself or beside None."""
    candidates = get_args(field.annotation)
    if candidates and all(isinstance(option, str) for option in candidates):
        return candidates
    return ()


def explain_distribution(error: ValidationError, given: Mapping[str, Any], fields: Iterable[str]) -> str:
    """Say in one line what is wrong with a distribution's bounds or values."""
    # A name that does not exist explains one that is missing, rather than the other way round.
    first = min(error.errors(include_url=False), key=lambda details: details["type"] != "extra_forbidden")
    if first["type"] == "value_error":
        return str(first.get("ctx", {}).get("error"))
    name = str(first["loc"][0]) if first["loc"] else ""
    kind = given.get("type", "choice")
    if first["type"] == "missing":
        return f"{kind} needs {name}"
    if first["type"] == "extra_forbidden":
        return f"{kind} has no {name}{did_you_mean(name, fields)}; it takes {', '.join(fields)}"
    message = first["msg"]
    return f"{kind} with {name} {show(first['input'])}: {message[:1].lower()}{message[1:]}"

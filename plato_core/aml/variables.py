"""Settings of a job as a command line has them: `--job-variable name=value`."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from plato_core.errors import ConfigError


def parsed(given: Sequence[str], known: Collection[str] | None = None) -> dict[str, Any]:
    """Return the values as `prefect deployment run` reads them: JSON, or else text; `env.NAME` is one of `env`.

    Args:
        given: `name=value` each.
        known: The names that there are; None leaves that to others.

    Raises:
        ConfigError: One is not like that, or there is no such setting.
    """
    found: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise ConfigError(f"--job-variable: {one!r} must be like name=value, such as instance_count=2")
        if name.startswith("env."):
            found.setdefault("env", {})[name.removeprefix("env.")] = text
            continue
        if known is not None and name not in known:
            raise ConfigError(f"--job-variable: there is no setting {name!r}; there are: {', '.join(known)}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found

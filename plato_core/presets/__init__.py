"""The shipped presets: partial sweep configs with overlays for algorithms and environments."""

import functools
from importlib import resources
from typing import Any

from plato_core import config_yaml

_MERGED = ("hyperparameters", "mutations")


def names() -> tuple[str, ...]:
    """Return the names of the shipped presets, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


@functools.cache
def read(name: str) -> dict[str, Any]:
    """Return a preset: `title`, `description`, `config`, `algorithms`, `env_defaults`.

    One that names another as its `base` has that one's settings with its own `config` over them.

    Raises:
        KeyError: If there is no such preset.
    """
    if name not in names():
        raise KeyError(name)
    own = config_yaml.parse_value((resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))
    if "base" not in own:
        return own
    base = read(own.pop("base"))
    return {**base, **own, "config": {**base["config"], **own["config"]}}


def partial(name: str | None, algorithm: str, env_name: str) -> dict[str, Any]:
    """Return the settings that a preset gives for this algorithm and environment; none for an unknown preset.

    The algorithm's overlay wins over the common part, value by value in `hyperparameters` and `mutations`,
    where a null takes a value away.
    """
    if name is None or name not in names():
        return {}
    preset = read(name)
    result = dict(preset["config"])
    for overlay in (
        preset.get("algorithms", {}).get(algorithm, {}),
        preset.get("env_defaults", {}).get(env_name, {}),
    ):
        result |= {key: value for key, value in overlay.items() if key not in _MERGED}
        for key in _MERGED:
            merged = {**result.get(key, {}), **overlay.get(key, {})}
            result[key] = {k: v for k, v in merged.items() if v is not None}
    return result

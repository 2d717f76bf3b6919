"""A sweep's settings as a deployment's form: what it shows, and what comes back from it.

Prefect hands every parameter to a flow alike: what a person typed, what the deployment said, what the signature had
as its default. Told apart they must be: `-p env_name=Acrobot-v1` asks for the preset's settings in Acrobot, not for
CartPole's target return in it. So what equals the preset's own settings counts as left alone.
"""

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from plato_core.config import SweepConfig
from plato_core.config_sources import NO_PRESET, PLACES, load_config

_BY_KEY = ("hyperparameters", "mutations")


def form_values(preset: str | None = None, **settings: Any) -> dict[str, Any]:
    """Return the value of every field of a deployment's form.

    `prefect deploy` calls it as a build step, whose outputs `prefect.yaml` puts into the deployment's parameters.

    Args:
        preset: Shipped defaults to start from.
        settings: What this deployment has otherwise.

    Raises:
        ConfigError: If a value is not possible; one line.
    """
    config = load_config({"preset": preset, **settings}, None, {}, str)
    return config.flow_parameters() | {"seed": settings.get("seed")}  # drawn anew for each run


def from_form(parameters: Mapping[str, Any], environ: Mapping[str, str]) -> SweepConfig:
    """Return the complete config of what a form, `-p` or a caller of the flow gave.

    Args:
        parameters: The flow's parameters, all or some.
        environ: The process's environment; it says where the tracking store and the Ray cluster are, unless the
            parameters do, and nothing else, so that what the form shows is what runs.

    Raises:
        ConfigError: If a value is not possible; one line.
    """
    values = to_jsonable_python(dict(parameters))
    preset = values.pop("preset", None)
    bare = preset in (None, NO_PRESET)
    shown = SweepConfig.model_construct().flow_parameters() if bare else form_values(preset)
    given = {name: value for name, value in values.items() if name not in shown or value != shown[name]}
    for name in _BY_KEY:
        if isinstance(given.get(name), Mapping):
            given[name] = _changed(given[name], shown[name])
    if preset is not None:
        given["preset"] = preset
    return load_config(given, None, {name: environ[name] for name in PLACES if name in environ}, str)


def _changed(values: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was changed or added, and None for what was taken out."""
    changed = {key: value for key, value in values.items() if key not in shown or value != shown[key]}
    return changed | {key: None for key in shown if key not in values}

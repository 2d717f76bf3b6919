"""A sweep's settings as a deployment's form: what it shows, and what comes back from it.

Prefect hands every parameter to a flow alike: what a person typed, what the deployment said, what the signature had
as its default. Told apart they must be: `-p env_name=Acrobot-v1` asks for the preset's settings in Acrobot, not for
CartPole's target return in it. So what equals the preset's own settings counts as left alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from plato_core.config import SweepConfig
from plato_core.config_sources import ENV_PREFIX, NO_PRESET, PLACES, load_config, machines_in
from plato_core.errors import ConfigError
from plato_core.names import canonicalise

_BY_KEY = ("hyperparameters", "mutations", "job_variables")


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


def from_form(
    parameters: Mapping[str, Any], environ: Mapping[str, str], shown: Mapping[str, Any] | None = None
) -> SweepConfig:
    """Return the complete config of what a form, `-p` or a caller of the flow gave.

    Args:
        parameters: The flow's parameters, all or some.
        environ: The process's environment; it says where the tracking store, the Ray cluster and the folders are,
            unless the parameters do, and nothing else, so that what the form shows is what runs.
        shown: What the form showed: the deployment's own parameters. By default the form of the preset that the
            parameters name, or without one the model's defaults.

    Raises:
        ConfigError: If a value is not possible; one line.
    """
    values = to_jsonable_python(dict(parameters))
    if shown is None:
        shown = _usual(values.get("preset"))
    given = _changed(values, shown)
    if given.get("resume") is not None:  # that sweep's settings stand; what differs from the form is asked for
        # The folder in which it is looked for is this form's, also where it was left alone.
        storage = storage_of(values, environ, shown)
        return load_config({**machines_in(environ), "storage_path": str(storage), **given}, None, {}, str)
    own = _own_settings(shown)
    settings = own | given
    for name in _BY_KEY:
        if name in given:
            settings[name] = own.get(name, {}) | given[name]
    return load_config(settings, None, {name: environ[name] for name in PLACES if name in environ}, str)


def storage_of(
    parameters: Mapping[str, Any], environ: Mapping[str, str], shown: Mapping[str, Any] | None = None
) -> Path:
    """Return the folder of sweeps that a form means, as `from_form` has it.

    What was changed there counts first, then the deployment's own, then the environment's, then the usual.

    Args:
        parameters: The flow's parameters, all or some.
        environ: The process's environment.
        shown: What the form showed; by default what the model has.
    """
    name = "storage_path"
    usual = SweepConfig.model_fields[name].default
    before = (shown or {}).get(name, usual)
    given = parameters.get(name, before)
    if given == before == usual:
        given = environ.get(f"{ENV_PREFIX}{name.upper()}") or usual
    return Path(str(given)).expanduser().absolute()


def _own_settings(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a deployment has beside its preset: what was written next to `preset` in its build step."""
    preset, usual = shown.get("preset"), _usual(shown.get("preset"))
    own = {name: shown[name] for name in ("algorithm", "env_name") if shown[name] != usual[name]}
    own |= _changed(shown, _usual(preset, **own))
    return own if preset is None else {"preset": preset, **own}


def _usual(preset: str | None, **settings: Any) -> dict[str, Any]:
    """Return the form of a preset, or of none: the model's defaults."""
    if preset in (None, NO_PRESET):
        return SweepConfig.model_construct(preset=preset).flow_parameters() | settings
    return form_values(preset, **settings)


def _changed(values: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from what was shown; of mappings each key that does, and None for one taken out."""
    changed = {name: value for name, value in values.items() if name not in shown or value != shown[name]}
    for name in _BY_KEY:
        if isinstance(mapping := changed.get(name), Mapping):
            named, before = _canonical(name, mapping), shown[name]
            changed[name] = {key: value for key, value in named.items() if key not in before or value != before[key]}
            changed[name] |= {key: None for key in before if key not in named}
    return changed


def _canonical(name: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    if name == "job_variables":
        return dict(mapping)
    try:
        return canonicalise(mapping)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None

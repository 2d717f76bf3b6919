"""Where the settings of a sweep come from: flags over the file, over the environment, over the preset.

The result is complete: nothing that it leaves open is decided by an environment later.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from plato_core import config_yaml, presets
from plato_core.aml import jobrun
from plato_core.config import SweepConfig
from plato_core.config_errors import Label, config_error, dotted
from plato_core.config_rules import starts_outside
from plato_core.config_store import is_of_this_machine
from plato_core.errors import ConfigError
from plato_core.names import canonicalise, did_you_mean
from plato_core.search_space import parse, parse_start
from plato_core.training import schema

ENV_PREFIX = "PLATO_"
NO_PRESET, DEFAULT_PRESET, LOCAL_PRESET = "none", "plato", "test-local"
_MERGED = ("hyperparameters", "mutations")
_BY_KEY = (*_MERGED, "job_variables")
_OTHER_VARIABLES = {"tracking_uri": "MLFLOW_TRACKING_URI", "ray_address": "RAY_ADDRESS"}
# The machines that a sweep runs on, which may be others when it goes on.
_MACHINES = ("ray_address", "ray_nodes", "ray_wait_s", "local_path")
# What a machine's environment says of the place where a sweep runs, and not of the sweep.
PLACES = (
    *_OTHER_VARIABLES.values(),
    *(f"{ENV_PREFIX}{name.upper()}" for name in ("tracking_uri", "storage_path", *_MACHINES)),
    *jobrun.VARIABLES,
)
_FIELD_ALIASES = {"num_workers": "num_env_runners", "env": "env_name"}
# They say where to look for a sweep, or what it began with.
_NOT_OF_A_RESUMED = ("resume", "storage_path", "test_local", "preset")
# A job brings its own Ray, whatever the shell was set up for, and reaches no store of this machine.
_NOT_WITH_AML = ("ray_address", "ray_nodes")
_NOT_WITH_TEST_LOCAL = ("tracking_uri", "ray_address", "ray_nodes", "preset")


@dataclass
class _Layer:
    """The settings of one source, and the name by which a user knows each of them."""

    values: dict[str, Any] = field(default_factory=dict)
    labels: dict[tuple[str, ...], str] = field(default_factory=dict)


def flag(name: str) -> str:
    """Return what the command line calls a setting."""
    return f"--{name.replace('_', '-')}"


def load_config(
    flags: Mapping[str, Any],
    file: Path | None,
    environ: Mapping[str, str],
    label: Callable[[str], str] = flag,
) -> SweepConfig:
    """Return the complete config of a sweep.

    Args:
        flags: Settings by field name that the user gave on the command line (or in a form): only those.
        file: A YAML file of settings, `--config`.
        label: What the user knows one of the `flags` by.
        environ: The process's environment: `PLATO_<FIELD>`, and `MLFLOW_TRACKING_URI` and `RAY_ADDRESS` after
            their `PLATO_` forms. With `test_local` the environment chooses neither tracking store nor Ray
            cluster: that is a run on this machine, whatever the shell was set up for.

    Returns:
        The config, its preset applied and its seed drawn where none was given.

    Raises:
        ConfigError: One line that says where the value came from, the value, what is allowed and the way out.
    """
    layers = [_from_environment(environ), _from_file(file), _from_flags(flags, label)]
    user = _merge(layers)
    test_local = _flag(user, "test_local")
    if test_local:
        for name in _NOT_WITH_TEST_LOCAL:
            layers[0].values.pop(name, None)
        user = _merge(layers)
    if user.values.get("compute") == "aml":
        for name in _NOT_WITH_AML:
            layers[0].values.pop(name, None)
        if is_of_this_machine(layers[0].values.get("tracking_uri", "")):
            layers[0].values.pop("tracking_uri", None)
        user = _merge(layers)
    if (resume := user.values.get("resume")) is not None:
        return _resumed(str(resume), user, _merge(layers[1:]))
    preset = _preset_name(user, test_local)
    shipped = _shipped(user.values, preset)
    values = _over(shipped, user.values, preset)
    if values.get("seed") is None:
        values["seed"] = random.SystemRandom().randrange(2**31)
    values |= _in_azure(values.get("tracking_uri"), environ)
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        raise config_error(error, SweepConfig, _labeller(user, shipped, preset)) from None


def _in_azure(uri: Any, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what Azure ML says of the tracking: a workspace's address by its file, and a job's own experiment."""
    if not isinstance(uri, str) or not (uri.startswith("azureml") or uri.endswith(".json")):
        return {}
    from plato_core.tracking.azure import names_config, uri_of_config

    if names_config(uri):
        uri = uri_of_config(uri)
    job = jobrun.JobRun.tracked_in(uri, environ)
    # A job's run cannot leave the job's experiment, and the sweep's trials belong beside it.
    return {"tracking_uri": uri} | ({"experiment_name": job.experiment_name} if job and job.experiment_name else {})


def machines_in(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what the environment says of the machines, by field name; a sweep that goes on runs there now."""
    said = _from_environment({name: environ[name] for name in PLACES if name in environ}).values
    return {name: said[name] for name in _MACHINES if name in said}


def _resumed(named: str, user: _Layer, given: _Layer) -> SweepConfig:
    """Return the config of a sweep that goes on; beside its own settings only what was given for it counts.

    That is by flags and file: the environment says where to look for it and nothing of the sweep.
    """
    from plato_core.resuming import find_sweep, resumed_config

    storage = Path(user.values.get("storage_path", SweepConfig.model_fields["storage_path"].default))
    settings = {name: value for name, value in given.values.items() if name not in _NOT_OF_A_RESUMED}
    return resumed_config(find_sweep(storage.expanduser().absolute(), named), settings)


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    layer = _Layer()
    for name, info in SweepConfig.model_fields.items():
        for variable in (f"{ENV_PREFIX}{name.upper()}", _OTHER_VARIABLES.get(name)):
            text = environ.get(variable, "") if variable is not None else ""
            if not text or variable is None:
                continue
            layer.labels[(name,)] = variable
            layer.values[name] = text
            if info.default_factory is not None:  # the settings that are mappings
                try:
                    layer.values[name] = config_yaml.parse_value(text)
                except ConfigError as error:
                    raise ConfigError(f"{variable}: {error}") from None
            break
    return _named(layer)


def _from_file(path: Path | None) -> _Layer:
    if path is None:
        return _Layer()
    content, lines = config_yaml.read_mapping(path)
    layer = _Layer()
    for key, value in content.items():
        name = _FIELD_ALIASES.get(str(key), str(key))
        label = _line(path, lines, (str(key),))
        if name not in SweepConfig.model_fields:
            hint = did_you_mean(name, SweepConfig.model_fields)
            raise ConfigError(f"{label}: there is no such setting{hint}; see `plato sweep --help`")
        if name in layer.values:
            raise ConfigError(f"{label}: {name} is given already; give one of the two")
        layer.values[name], layer.labels[(name,)] = value, label
        if isinstance(value, Mapping):
            for inner in value:
                layer.labels[(name, str(inner))] = _line(path, lines, (str(key), str(inner)))
    return _named(layer)


def _line(path: Path, lines: config_yaml.Lines, where: tuple[str, ...]) -> str:
    line = lines.get(where)  # a key that stands for something else, such as `yes`, is under another name there
    return f"{path} line {line}, {dotted(where)}" if line is not None else f"{path}, {dotted(where)}"


def _from_flags(flags: Mapping[str, Any], label: Callable[[str], str]) -> _Layer:
    return _named(_Layer(dict(flags), {(name,): label(name) for name in flags}))


def _named(layer: _Layer) -> _Layer:
    """Put hyperparameters and mutations under canonical names, so that layers meet by one name."""
    for name in _MERGED:
        given = layer.values.get(name)
        if not isinstance(given, Mapping):
            continue
        try:
            layer.values[name] = canonicalise({str(key): value for key, value in given.items()})
            found = {key: layer.labels[(name, key)] for key in map(str, given) if (name, key) in layer.labels}
            layer.labels |= {(name, key): label for key, label in canonicalise(found).items()}
        except ValueError as error:
            raise ConfigError(f"{layer.labels.get((name,), name)}: {error}") from None
    return layer


def _merge(layers: list[_Layer]) -> _Layer:
    """Lay the later layers over the earlier ones; hyperparameters and mutations key by key."""
    result = _Layer()
    for layer in layers:
        result.labels |= layer.labels
        for name, value in layer.values.items():
            below = result.values.get(name)
            if name in _BY_KEY and isinstance(value, Mapping) and isinstance(below, Mapping):
                value = {**below, **value}
            result.values[name] = value
    return result


def _flag(layer: _Layer, name: str) -> bool:
    value = layer.values.get(name, False)
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        label = layer.labels[(name,)]
        raise ConfigError(f"{label}: {value!r} is not possible; give true or false") from None


def _preset_name(user: _Layer, test_local: bool) -> str:
    name = user.values.get("preset")
    if name is None:
        return LOCAL_PRESET if test_local else DEFAULT_PRESET
    known = (*presets.names(), NO_PRESET)
    if name not in known:
        hint = did_you_mean(str(name), known)
        label = user.labels[("preset",)]
        raise ConfigError(f"{label}: there is no preset {name!r}{hint}; give {' or '.join(known)}")
    return name


def _shipped(user: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Return the preset's settings, as far as they make sense with the user's.

    Left out are hyperparameters that the algorithm lacks, and starting points that a mutation of the user's
    does not
    reach: it is the user's space that is searched.
    """
    common = presets.read(preset)["config"] if preset != NO_PRESET else {}
    algorithm, env_name = (
        user.get(name, common.get(name, SweepConfig.model_fields[name].default)) for name in ("algorithm", "env_name")
    )
    shipped = presets.partial(preset, str(algorithm), str(env_name))
    if algorithm in schema.algorithms():
        for name in _MERGED:
            given = shipped.get(name, {})
            shipped[name] = {key: value for key, value in given.items() if schema.has_key(algorithm, key)}
    shipped["hyperparameters"] = _reachable(shipped.get("hyperparameters", {}), user.get("mutations"))
    return shipped


def _over(shipped: Mapping[str, Any], user: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Lay the user's settings over the preset's, hyperparameters and mutations key by key."""
    values = {**shipped, **user, "preset": preset}
    for name in _MERGED:
        given = user.get(name)
        if given is None:
            values[name] = shipped.get(name, {})
        elif isinstance(given, Mapping):
            values[name] = {**shipped.get(name, {}), **given}
    return values


def _reachable(starts: Mapping[str, Any], mutations: Any) -> dict[str, Any]:
    if not isinstance(mutations, Mapping):
        return dict(starts)
    kept = dict(starts)
    for name, mutation in mutations.items():
        try:
            if name in starts and mutation is not None:
                outside = starts_outside(parse_start(starts[name]), parse(mutation))
                if outside is not None:
                    del kept[name]
        except ValueError:
            continue  # the mutation is refused with its own message, once all is put together
    return kept


def _labeller(user: _Layer, shipped: Mapping[str, Any], preset: str) -> Label:
    """Return what names a setting by where it came from: the user's own source, the preset, or neither."""

    def label(path: tuple[str, ...]) -> str:
        given: Any = user.values
        for length, part in enumerate(path, start=1):
            if not isinstance(given, Mapping) or part not in given:
                break
            given = given[part]
            if length == len(path) or not isinstance(given, Mapping):
                known = next(path[:n] for n in range(length, 0, -1) if path[:n] in user.labels)
                inner = dotted(path[len(known) :])
                return f"{user.labels[known]}.{inner}" if inner else user.labels[known]
        from_preset = path[0] in shipped and (len(path) == 1 or path[1] in shipped[path[0]])
        return f"{dotted(path)} (preset {preset})" if from_preset else dotted(path)

    return label

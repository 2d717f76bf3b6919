"""`plato sweep`, the command line of a sweep: one flag for each setting, with the setting's own words."""

import inspect
import os
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import App, Group, Parameter
from pydantic.fields import FieldInfo

from plato_core import presets
from plato_core.aml.sweepsettings import tracked
from plato_core.aml.variables import parsed
from plato_core.config import SweepConfig
from plato_core.config_machine import check_machine
from plato_core.config_sources import DEFAULT_PRESET, load_config

GROUPS: dict[str, tuple[str, ...]] = {
    "What": (
        "test_local", "preset", "config", "resume", "env_name", "algorithm", "num_tune_samples", "scheduler",
        "perturbation_interval", "seed",
    ),
    "When to stop": ("stop_reward", "stop_when", "max_iterations", "time_budget_s", "max_failures"),
    "Where": (
        "experiment_name", "tracking_uri", "storage_path", "prune_after_days", "prune_keep", "local_path",
        "compute", "job_variable", "ray_address", "ray_nodes", "num_cpus", "num_gpus", "num_env_runners",
    ),
    "Checkpoints": ("checkpoint_interval", "keep_checkpoints"),
    "Which wins": ("rank_metric", "mode"),
    "Output": ("json",),
}  # fmt: skip
_HELP = """Train a population of RLlib policies, pick the best, download and verify its checkpoint.

Flags beat the file of --config, which beats the environment (PLATO_<SETTING>, MLFLOW_TRACKING_URI, \
RAY_ADDRESS), which beats the preset. The file takes every setting that has a flag, and hyperparameters \
and mutations besides."""
_OWN: dict[str, tuple[Any, str, str]] = {
    "job_variable": (
        list[str],
        "NAME=VALUE",
        "With --compute aml: a setting of the job, as often as needed; docs/azure-ml.md.",
    ),
    "config": (Path, "FILE", "YAML file of settings; the names are those of the flags, with underscores."),
    "json": (bool, "", "End the output with one line of JSON that holds the result."),
}
_METAVARS = {str: "TEXT", int: "INT", float: "NUMBER"}


def sweep_app(name: str) -> App:
    """Return the command under the name that a user typed to get here."""
    return App(
        name=name,
        help=_HELP,
        default_command=_command(),
        suppress_keyboard_interrupt=False,
        help_format="plaintext",
        version_flags=[],
    )


def _sweep(
    config: Path | None = None, json: bool | None = None, job_variable: list[str] | None = None, **flags: Any
) -> int:
    given = {name: value for name, value in flags.items() if value is not None}
    if job_variable:
        given["job_variables"] = parsed(job_variable)
    settings = tracked(load_config(given, config, os.environ))
    check_machine(settings)
    from plato_core.cli.run import run_sweep  # everything heavy is behind it

    return run_sweep(settings, bool(json))


def _command() -> Any:
    """`_sweep` with the signature that its flags make, for cyclopts to read."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, Group(title, sort_key=index)),
        )
        for index, (title, names) in enumerate(GROUPS.items())
        for name in names
    ]

    def sweep(**flags: Any) -> int:
        return _sweep(**flags)

    sweep.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    sweep.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
    return sweep


def _annotation(name: str, group: Group) -> Any:
    """One flag. Values stay text: the config checks them, so that a wrong one reads alike everywhere."""
    if name in _OWN:
        kind, metavar, text = _OWN[name]
        default = None
    else:
        info = SweepConfig.model_fields[name]
        kind = bool if info.annotation is bool else str
        metavar, text, default = _metavar(info), info.description or "", _default(name, info)
    return Annotated[
        kind | None,
        Parameter(
            group=group,
            help=text,
            metavar=metavar or None,
            negative=(),
            show_default=(lambda _: default) if default else False,
            allow_leading_hyphen=name == "stop_reward",  # returns are negative in many environments
        ),
    ]


def _metavar(info: FieldInfo) -> str:
    options = get_args(info.annotation)
    if options and all(isinstance(option, str) for option in options):
        return "|".join(options)
    return next((text for kind, text in _METAVARS.items() if kind in (options or (info.annotation,))), "")


def _default(name: str, info: FieldInfo) -> str | None:
    """The default in words: what holds without a preset's name, then where other presets differ."""
    shipped = {preset: presets.read(preset)["config"].get(name, info.default) for preset in presets.names()}
    usual = shipped[DEFAULT_PRESET]
    parts = [] if usual is None or usual is False else [str(usual)]
    parts += [f"{value} with {preset}" for preset, value in shipped.items() if value not in (None, usual)]
    return ", ".join(parts) or None

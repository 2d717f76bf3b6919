"""`plato aml`: what is particular to Azure ML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from plato_core.errors import ConfigError


def aml_app() -> App:
    """Return the group of commands."""
    app = App(
        name="aml",
        help="Sweeps on Azure ML.",
        suppress_keyboard_interrupt=False,
        help_format="plaintext",
        version_flags=[],
    )
    app.command(doctor)
    return app


def doctor(
    *,
    deployment: str | None = None,
    job_variable: Annotated[list[str] | None, Parameter(negative="", metavar="NAME=VALUE")] = None,
    workspace_config: Path | None = None,
    no_prefect: Annotated[bool, Parameter(negative="")] = False,
    no_write: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Check a setup before a job costs anything: one line each, with what to do where something is wrong.

    Nothing is submitted and no compute is started. One run of MLflow is written, read and deleted again.

    Run it in the project's folder, where the worker would run. Exit codes: 0 all is well or there are warnings only,
    1 something would fail, 2 bad input.

    Parameters
    ----------
    deployment
        Whose settings to check: sweep/aml if not given. They come from the Prefect server in force, or where none
        answers from prefect.yaml in this folder.
    job_variable
        A setting over the deployment's, as `prefect deployment run --job-variable` has it. Can be repeated.
    workspace_config
        The workspace's config.json, or a folder to look from.
    no_prefect
        For sweeps with `--compute aml`, whose jobs talk to no Prefect API and have no deployment: the settings are
        those of --job-variable.
    no_write
        Only read from MLflow.
    json
        Say each line as one JSON object.
    """
    from plato_core.aml.doctor import examine
    from plato_core.aml.doctor.settings import KNOWN, look_up
    from plato_core.aml.sweepsettings import fields_of
    from plato_core.aml.variables import parsed

    if no_prefect and deployment is not None:
        raise ConfigError("--no-prefect: a deployment runs by Prefect; leave out one of the two")
    overrides = parsed(job_variable or [], None if no_prefect else KNOWN)
    if workspace_config is not None:
        overrides["workspace_config"] = str(workspace_config)
    if no_prefect:
        settings, source, note = fields_of(overrides), "--job-variable", ""
    else:
        found = look_up(deployment, Path.cwd())
        settings, source, note = found.filled(overrides), found.source, found.note
    lines = []
    for line in examine(settings, source=source, note=note, write=not no_write):
        lines.append(line)
        print(line.model_dump_json() if json else line.describe(), flush=True)
    failed = sum(line.level == "failed" for line in lines)
    if not json:
        counts = {level: sum(line.level == level for line in lines) for level in ("warning", "failed", "skipped")}
        rest = ", ".join(f"{number} {level}" for level, number in counts.items() if number)
        print(f"{len(lines)} checks: {rest or 'all is well'}")
    return 1 if failed else 0

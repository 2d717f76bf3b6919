"""`plato up`: start the local stack."""

from __future__ import annotations


def up() -> int:
    """Start a Prefect server, an MLflow server and a worker on this machine, and deploy the sweeps to them.

    Run it in the folder of prefect.yaml. What is up already stays up. All data lives in .plato/stack; the variables
    PLATO_STACK_* choose another folder, other ports or databases.
    """
    from pathlib import Path

    from plato_core.cli.steps import say
    from plato_core.stack.settings import load_settings
    from plato_core.stack.starting import start

    settings = load_settings()
    start(settings, Path.cwd(), say)
    say("Prefect", settings.prefect_url)
    say("MLflow", settings.mlflow_url)
    say("next", f"export PREFECT_API_URL={settings.api_url} MLFLOW_TRACKING_URI={settings.mlflow_url}")
    say("", "prefect deployment run sweep/local --watch")
    return 0

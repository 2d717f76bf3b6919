"""The way to a run's page in MLflow, for people."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from plato_core.report.text import hide_passwords
from plato_core.tracking.azure import studio_page

# Without it MLflow's pages (3.15) have the menu of generative AI; a tag of the experiment does not change that.
_VIEW = "workflowType=machine_learning"
_UI = "http://127.0.0.1:5000"
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///")


@dataclass(frozen=True)
class RunPage:
    """Where a run is shown.

    Attributes:
        address: Of its page; None in Azure ML where the URI names no workspace: its Studio finds it by the experiment.
        command: Opens the MLflow UI at that address, where the store is no server.
        place: What the page belongs to.
    """

    address: str | None
    command: str | None = None
    place: str = "MLflow"

    @property
    def needs_password(self) -> bool:
        """Whether the command has `***` where the store's password must stand."""
        return self.command is not None and "***" in self.command


def run_page(tracking_uri: str, experiment_id: str, run_id: str, cwd: Path | None = None) -> RunPage:
    """Return the way to a run's page.

    Args:
        tracking_uri: The store.
        experiment_id: Of the run.
        run_id: Of the run.
        cwd: The folder in which the command will be typed.
    """
    place = f"#/experiments/{experiment_id}/runs/{run_id}?{_VIEW}"
    scheme = tracking_uri.partition("://")[0] if "://" in tracking_uri else ""
    if scheme in ("http", "https"):
        parts = urlsplit(hide_passwords(tracking_uri))
        host = parts.netloc.removeprefix("***@")
        server = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        return RunPage(f"{server}/{place}")
    if scheme.startswith("azureml"):
        return RunPage(studio_page(tracking_uri, run_id), place="Azure ML Studio")
    return RunPage(f"{_UI}/{place}", ui_command(tracking_uri, cwd))


def ui_command(tracking_uri: str, cwd: Path | None = None) -> str:
    """Return the command that opens the MLflow UI on a store that has no server.

    Args:
        tracking_uri: The store.
        cwd: The folder in which it will be typed: a file below it is named relative to it.
    """
    shown = hide_passwords(tracking_uri)
    if (match := _SQLITE.match(tracking_uri)) and "?" not in tracking_uri:
        path = Path(tracking_uri[match.end() :])
        shown = f"{match.group()}{path if cwd is None else below(path, cwd)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"


def below(path: Path, cwd: Path) -> Path:
    """Return `path` relative to `cwd` if it lies below it."""
    return path.relative_to(cwd) if path.is_absolute() and path.is_relative_to(cwd) else path

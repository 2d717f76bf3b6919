"""What a finished sweep says last: the winner, where its checkpoint lies, and how to look at it."""

import os
import re
import shlex
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from plato_core.report.text import counted, duration, hide_passwords, measure, plain
from plato_core.sweep.events import TrackingState

_UI = "http://127.0.0.1:5000"
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///")


class SweepResult(Protocol):
    """The fields of a sweep's result that its last words need."""

    @property
    def experiment_name(self) -> str: ...  # noqa: D102
    @property
    def top_run_id(self) -> str: ...  # noqa: D102
    @property
    def rank_metric(self) -> str: ...  # noqa: D102
    @property
    def rank_value(self) -> float: ...  # noqa: D102
    @property
    def checkpoint_path(self) -> str | os.PathLike[str]: ...  # noqa: D102
    @property
    def checkpoint_iteration(self) -> int: ...  # noqa: D102
    @property
    def tracking_uri(self) -> str: ...  # noqa: D102
    @property
    def trials(self) -> int: ...  # noqa: D102
    @property
    def wall_s(self) -> float: ...  # noqa: D102
    @property
    def slots(self) -> float: ...  # noqa: D102
    @property
    def sweep_efficiency(self) -> float: ...  # noqa: D102


def final_lines(
    result: SweepResult,
    *,
    experiment_id: str,
    cwd: Path,
    winner_name: str | None = None,
    tracking: TrackingState | None = None,
    spool: str | None = None,
) -> list[str]:
    """Return the last words of a sweep.

    Args:
        result: The sweep's result.
        experiment_id: MLflow's id of the experiment, for the run's address.
        cwd: The folder in which the person will type the commands; paths below it are shown relative to it.
        winner_name: What people call the winning trial; its run id stands alone without.
        tracking: The tracking writer's last state.
        spool: The folder of what could not be sent, if anything.
    """
    name = f"{winner_name}, run {result.top_run_id}" if winner_name else f"run {result.top_run_id}"
    metric = result.rank_metric.removeprefix("metrics.")
    folder = _below(Path(result.checkpoint_path), cwd)
    lines = [
        f"winner      {name}: {metric} {measure(result.rank_value)}",
        f"checkpoint  {folder} (iteration {result.checkpoint_iteration}, verified)",
        f"sweep       {counted(result.trials, 'trial')} in {duration(result.wall_s)}, "
        f"efficiency {result.sweep_efficiency:.2f} on {counted(int(result.slots), 'CPU')}",
    ]
    if spool is not None and tracking is not None and tracking.rejected and not tracking.pending:
        lines.append(f"tracking    what the tracker refused is in {Path(spool) / 'rejected.jsonl'}")
    elif spool is not None:
        waiting = f"{tracking.pending} entries wait" if tracking and tracking.pending else "some entries wait"
        lines.append(f"tracking    {waiting} in the spool; send them: plato flush {shlex.quote(spool)}")
    else:
        lines.append("tracking    complete: everything was sent")
    if tracking is not None and tracking.rejected:
        why = f": {plain(tracking.last_error)}" if tracking.last_error else ""
        lines.append(f"            the tracker refused {tracking.rejected} entries for good{why}")
    return lines + _way_to_ui(result, experiment_id, cwd)


def ui_command(tracking_uri: str, cwd: Path) -> str:
    """Return the command, to be typed in `cwd`, that opens the MLflow UI on a store that has no server."""
    shown = hide_passwords(tracking_uri)
    if (match := _SQLITE.match(tracking_uri)) and "?" not in tracking_uri:
        path = Path(tracking_uri[match.end() :])
        shown = f"{match.group()}{_below(path, cwd)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"


def _way_to_ui(result: SweepResult, experiment_id: str, cwd: Path) -> list[str]:
    uri = result.tracking_uri
    place = f"#/experiments/{experiment_id}/runs/{result.top_run_id}"
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme in ("http", "https"):
        parts = urlsplit(hide_passwords(uri))
        host = parts.netloc.removeprefix("***@")
        server = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        return [f"see it      {server}/{place}"]
    if scheme.startswith("azureml"):
        return [f"see it      in Azure ML Studio, under the experiment {result.experiment_name}"]
    command = ui_command(uri, cwd)
    secret = ["            (put the store's password where *** stands)"] if "***" in command else []
    return [f"see it      {command}", *secret, f"            then {_UI}/{place}"]


def _below(path: Path, cwd: Path) -> Path:
    """Return `path` relative to `cwd` if it lies below it."""
    return path.relative_to(cwd) if path.is_absolute() and path.is_relative_to(cwd) else path

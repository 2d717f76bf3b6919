"""What a finished sweep says last in the terminal: the winner, where its checkpoint lies, and how to look at it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from plato_core.report.facts import TrialRow
from plato_core.report.links import below, run_page
from plato_core.report.notable import failure_line
from plato_core.report.text import counted, duration, measure, plain
from plato_core.report.tracking_outages import kept_line
from plato_core.result import SweepResult
from plato_core.sweep.events import TrackingState


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
        spool: The folder of what could not be sent; None if there is none, and in a job.
    """
    name = f"{winner_name}, run {result.top_run_id}" if winner_name else f"run {result.top_run_id}"
    metric = result.rank_metric.removeprefix("metrics.")
    folder = below(Path(result.checkpoint_path), cwd)
    first, *others = tracking_words(tracking, spool)
    efficiency = f"efficiency {result.sweep_efficiency:.2f} on {counted(int(result.slots), 'CPU')}"
    return [
        f"winner      {name}: {metric} {measure(result.rank_value)}",
        f"checkpoint  {folder} (iteration {result.checkpoint_iteration}, verified)",
        f"sweep       {counted(result.trials, 'trial')} in {duration(result.wall_s)}, "
        f"{efficiency if result.fit_s else 'nothing was left to train'}",
        f"tracking    {first}",
        *(f"            {line}" for line in others),
        *_way_to_ui(result, experiment_id, cwd),
    ]


def failure_words(rows: Sequence[TrialRow]) -> list[str]:
    """Return what each trial that failed for good failed with, in the order of the trials' numbers."""
    failed = sorted((row for row in rows if row.state == "failed"), key=lambda row: row.index)
    return [failure_line(row) for row in failed]


def tracking_words(tracking: TrackingState | None, spool: str | None) -> list[str]:
    """Return whether everything is in the tracking store, and else what is left to do.

    Args:
        tracking: The tracking writer's last state.
        spool: The folder of what could not be sent; None if there is none, and in a job.
    """
    if spool is not None and tracking is not None and tracking.rejected and not tracking.pending:
        lines = [f"what the tracker refused is in {Path(spool) / 'rejected.jsonl'}"]
    elif spool is not None:
        waiting = f"{tracking.pending} entries wait" if tracking and tracking.pending else "some entries wait"
        lines = [f"{waiting} in the spool; send them: plato flush {shlex.quote(spool)}"]
    elif tracking is not None and tracking.pending:
        lines = [kept_line(tracking.pending)]
    else:
        lines = [] if tracking is not None and tracking.rejected else ["complete: everything was sent"]
    if tracking is not None and tracking.rejected:
        why = f": {plain(tracking.last_error)}" if tracking.last_error else ""
        lines.append(f"the tracker refused {tracking.rejected} entries for good{why}")
    return lines


def _way_to_ui(result: SweepResult, experiment_id: str, cwd: Path) -> list[str]:
    page = run_page(result.tracking_uri, experiment_id, result.top_run_id, cwd)
    if page.address is None:
        return [f"see it      in Azure ML Studio, under the experiment {result.experiment_name}"]
    if page.command is None:
        return [f"see it      {page.address}"]
    secret = ["            (put the store's password where *** stands)"] if page.needs_password else []
    return [f"see it      {page.command}", *secret, f"            then {page.address}"]

"""Which run of a sweep is the best, and which of its checkpoints (pure)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from plato_core.errors import ConfigError, SelectionError
from plato_core.manifest import Manifest
from plato_core.report.text import counted

Mode = Literal["max", "min"]
_SHOWN = 10
"""How many runs a message names before it says how many more there are."""


@dataclass(frozen=True)
class RunRecord:
    """A run as the tracking store has it.

    Attributes:
        run_id: Its id.
        name: What people know it by.
        status: MLflow's status: RUNNING, SCHEDULED, FINISHED, FAILED or KILLED.
        start_time: In milliseconds since the epoch; None if it is unknown.
        end_time: In milliseconds since the epoch; None while it runs.
        metrics: The latest value of each metric. It may be NaN or infinite.
        params: Its parameters.
        tags: Its tags.
    """

    run_id: str
    name: str
    status: str
    start_time: int | None = None
    end_time: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def parent_run_id(self) -> str | None:
        """The run that it is a child of, by its tag `mlflow.parentRunId`."""
        return self.tags.get("mlflow.parentRunId")


@dataclass(frozen=True)
class CheckpointRecord:
    """A complete checkpoint in the tracking store.

    Attributes:
        run_id: The run that it belongs to.
        iteration: That trial's own count when it was written.
        artifact_path: `checkpoint_NNNNNN`.
        manifest: What it consists of.
    """

    run_id: str
    iteration: int
    artifact_path: str
    manifest: Manifest


@dataclass(frozen=True)
class Selection:
    """The winner.

    Attributes:
        run: The best run that qualifies.
        rank_value: Its latest value of the rank metric, finite.
        checkpoint: Its best complete checkpoint.
        warnings: One line for each run that ranks before it and does not qualify, best first.
    """

    run: RunRecord
    rank_value: float
    checkpoint: CheckpointRecord
    warnings: list[str]


def metric_name(rank_metric: str) -> str:
    """Return the metric that `rank_metric` names, with or without MLflow's prefix `metrics.`."""
    return rank_metric.removeprefix("metrics.")


def rank_key(run: RunRecord, rank_metric: str, mode: Mode) -> tuple[float, float, str] | None:
    """Return what runs are sorted by, the best first; None if the rank value is unknown or not finite.

    Ties go to the run that started earlier, then to the lower run id, so that the order is the same
    however the store lists the runs.

    Raises:
        ConfigError: `mode` is none.
    """
    if mode not in ("max", "min"):
        raise ConfigError(f"The mode {mode!r} is unknown: it is 'max' where high values are good, else 'min'.")
    value = run.metrics.get(metric_name(rank_metric))
    if value is None or not math.isfinite(value):
        return None
    return (-value if mode == "max" else value, *_age(run))


def choose(
    runs: Iterable[RunRecord],
    rank_metric: str,
    mode: Mode,
    checkpoints_of: Callable[[str], Sequence[CheckpointRecord]],
    *,
    among: str | None = None,
    total: int | None = None,
) -> Selection:
    """Choose the best run that qualifies, and its best complete checkpoint.

    A run qualifies if it is FINISHED, has a finite latest value of the rank metric and at least one
    complete checkpoint. NaN, infinite and missing values never win.

    Args:
        runs: The candidates, in any order.
        rank_metric: With or without the prefix `metrics.`.
        mode: Whether a high or a low value is good.
        checkpoints_of: Gives the complete checkpoints of a run id. It is asked in order of rank, for
            FINISHED runs only and no further than the winner; if none qualifies, also for those that the
            error names.
        among: What the runs are, for the error; by default the children of their parent runs.
        total: How many runs there are in all, for the error, where `runs` are only the best of them.

    Raises:
        SelectionError: No run qualifies. It says what was looked for and what was found.
    """
    metric = metric_name(rank_metric)
    ordered = sorted(
        ((rank_key(run, metric, mode) or (math.inf, *_age(run)), run) for run in runs),
        key=lambda pair: pair[0],
    )
    passed_over: list[str] = []
    found: dict[str, Sequence[CheckpointRecord]] = {}
    for key, run in ordered:
        if key[0] == math.inf:  # from here on, nothing that can win
            break
        if run.status != "FINISHED":
            reason = f"is {run.status}, not FINISHED"
        else:
            found[run.run_id] = checkpoints_of(run.run_id)
            if found[run.run_id]:
                best = best_checkpoint(found[run.run_id], mode)
                return Selection(run, run.metrics[metric], best, _shortened(passed_over))
            reason = "has no complete checkpoint"
        passed_over.append(
            f"Run {run.name} ({run.run_id}) ranks before the winner with {metric} {run.metrics[metric]:g}, "
            f"but {reason}: it is passed over."
        )
    everything = [run for _, run in ordered]
    parents = sorted({run.parent_run_id for run in everything if run.parent_run_id})
    where = among or (f"the children of run {', '.join(parents[:3])}" if parents else "the runs given")
    wanted = f"a FINISHED run with a finite {metric} ({mode}) and a complete checkpoint"
    if not everything:
        raise SelectionError(f"No run qualifies among {where}: looked for {wanted}, found no runs at all.")
    lines = []
    for run in everything[:_SHOWN]:
        checkpoints = found[run.run_id] if run.run_id in found else checkpoints_of(run.run_id)
        lines.append(_described(run, metric, len(checkpoints)))
    count = total or len(everything)
    if count > len(lines):
        lines.append(f"and {count - len(lines)} more")
    listing = "\n  ".join(lines)
    why = ""
    if metric.startswith("episode_") and not any(metric in run.metrics for run in everything):
        why = "No episode has ended in any trial; train longer, with more iterations or time. "
    raise SelectionError(f"{why}No run qualifies among {where}: looked for {wanted}, found {count}:\n  {listing}")


def best_checkpoint(checkpoints: Sequence[CheckpointRecord], mode: Mode) -> CheckpointRecord:
    """Return the checkpoint with the best score of its manifest, the later of equals.

    An unknown score is worse than any other. Scores compare by the manifest's own mode where it has one,
    since they may be of another metric than the one that runs are ranked by; else by `mode`.

    Raises:
        ValueError: `checkpoints` is empty.
    """

    def worth(checkpoint: CheckpointRecord) -> tuple[float, int]:
        score = checkpoint.manifest.score
        if score is None or not math.isfinite(score):
            return (-math.inf, checkpoint.iteration)
        return (score if (checkpoint.manifest.mode or mode) == "max" else -score, checkpoint.iteration)

    return max(checkpoints, key=worth)


def _age(run: RunRecord) -> tuple[float, str]:
    """Return what decides between equals: the earlier start, then the lower id."""
    return (math.inf if run.start_time is None else run.start_time, run.run_id)


def _described(run: RunRecord, metric: str, checkpoints: int) -> str:
    value = run.metrics.get(metric)
    known = f"{metric} {value:g}" if value is not None else f"no {metric}"
    return f"{run.name} ({run.run_id}): {run.status}, {known}, {counted(checkpoints, 'complete checkpoint')}"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _SHOWN:
        return lines
    return [*lines[:_SHOWN], f"{len(lines) - _SHOWN} more runs rank before the winner and do not qualify."]

"""The operations that the journal holds: what is to be done in the store, by trial and not by run id.

A trial's run may not exist yet when its first result is journaled, so every operation names the trial
(``key``). Times are milliseconds since the epoch and are taken when the operation is journaled: one that
is sent twice is the same point twice, which MLflow keeps once.
"""

from typing import Literal, TypedDict


class CreateRun(TypedDict):
    """Create the trial's run, unless the store has it already."""

    op: Literal["create"]
    key: str
    name: str
    tags: dict[str, str]
    time: int


class LogMetrics(TypedDict):
    """One point for each of several metrics, all at one step. Values are finite."""

    op: Literal["metrics"]
    key: str
    step: int
    time: int
    values: dict[str, float]


class LogParams(TypedDict):
    """Params; MLflow never lets one change."""

    op: Literal["params"]
    key: str
    values: dict[str, str]


class SetTags(TypedDict):
    """Tags; the later value wins."""

    op: Literal["tags"]
    key: str
    values: dict[str, str]


class UploadCheckpoint(TypedDict):
    """Upload a held checkpoint directory. ``path`` is relative to the spool."""

    op: Literal["checkpoint"]
    key: str
    path: str
    iteration: int
    score: float | None


class UploadFile(TypedDict):
    """Upload one held file (``path`` in the spool) to the root of the run's artifacts, under its own name."""

    op: Literal["file"]
    key: str
    path: str


class SetStatus(TypedDict):
    """Set the run's status; one that ends it waits for the run's uploads."""

    op: Literal["status"]
    key: str
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    time: int


LogOp = LogMetrics | LogParams | SetTags
UploadOp = UploadCheckpoint | UploadFile
Op = CreateRun | LogOp | UploadOp | SetStatus

"""What the writer has in hand for one trial (in memory; all of it is in the journal too)."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plato_core.tracking.retention import checkpoints_to_keep

Numbered = tuple[int, dict[str, Any]]


@dataclass(eq=False)
class Job:
    """An upload, or the deletion of a checkpoint from the store.

    Attributes:
        lane: The trial's lane.
        number: The operation's number in the journal; None for a deletion, which the writer decides on
            itself.
        op: The operation; a deletion has ``op`` and ``iteration``.
        attempts: How often it was tried.
        not_before: When to try next, in ``time.monotonic`` seconds.
        running: Whether the pool has it.
    """

    lane: "Lane"
    number: int | None
    op: dict[str, Any]
    attempts: int = 0
    not_before: float = 0.0
    running: bool = False

    @property
    def kind(self) -> Literal["checkpoint", "file", "delete"]:
        """What is to be done."""
        return self.op["op"]


@dataclass(eq=False)
class Lane:
    """One trial's operations that were read and are not done.

    Attributes:
        key: The trial.
        create: The operation that creates its run, until that exists.
        create_tried: Whether a request to create it went out, so that it may exist though no answer came.
        run_known: Whether its run's id is known, and where it stood in the store when this process came to it.
        sent_before: The last step of which the store had points then, -1 if there were none.
        log: Metrics, params and tags, in order.
        jobs: Uploads and deletions.
        statuses: Changes of the run's status; they wait for the rest, but for the end of a trial that was cut off.
    """

    key: str
    create: Numbered | None = None
    create_tried: bool = False
    run_known: bool = False
    sent_before: int = -1
    log: deque[Numbered] = field(default_factory=deque)
    jobs: list[Job] = field(default_factory=list)
    statuses: deque[Numbered] = field(default_factory=deque)

    def add(self, number: int, op: dict[str, Any]) -> None:
        """Take an operation in. ``op`` must be of a known kind."""
        match op["op"]:
            case "create":
                self.create = (number, op)
            case "checkpoint" | "file":
                self.jobs.append(Job(self, number, op))
            case "status":
                self.statuses.append((number, op))
            case _:
                self.log.append((number, op))

    @property
    def wants_run(self) -> bool:
        """Whether something waits that needs the run to exist."""
        return bool(self.create or self.log or self.jobs or self.statuses)

    def take_all(self) -> list[Numbered]:
        """Empty the lane, but for jobs that the pool is at, and return its operations."""
        taken = [self.create] if self.create else []
        taken += [*self.log, *self.statuses]
        taken += [(job.number, job.op) for job in self.jobs if not job.running and job.number is not None]
        self.create = None
        self.log.clear()
        self.statuses.clear()
        self.jobs = [job for job in self.jobs if job.running]
        return taken

    def superseded(self, uploaded: Mapping[int, float | None], keep: int, mode: Literal["max", "min"]) -> list[Job]:
        """Checkpoints that wait and would be deleted from the store as soon as the others were up."""
        waiting = {job.op["iteration"]: job for job in self.jobs if job.kind == "checkpoint"}
        kept = checkpoints_to_keep({**uploaded, **{i: job.op["score"] for i, job in waiting.items()}}, keep, mode)
        return [job for i, job in waiting.items() if i not in kept and not job.running and not job.attempts]

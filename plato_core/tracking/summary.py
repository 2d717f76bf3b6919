"""What became of a sweep's tracking, in numbers and in a sentence."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DrainSummary:
    """What the writer sent, and what is left.

    Attributes:
        sent_metrics: Points that the store took (in this process).
        sent_batches: Requests that they took.
        uploads: Checkpoints and files that went up.
        bytes: Their size.
        superseded: Checkpoints never sent, because better and later ones were waiting too.
        undeletable: Checkpoints beyond ``keep_checkpoints`` that the store would not delete.
        pending_ops: Operations that are not done.
        rejected: Operations that the store refused for good; they are in ``rejected.jsonl`` in the spool.
        spool: The folder with what is left; None when nothing is and it was removed, and where no command gets at it.
        last_error: Why sending fails at present; None while it works.
        gives_up_s: At the end of a sweep: after so many seconds without progress what is left stays in the spool.
            None before.
    """

    sent_metrics: int = 0
    sent_batches: int = 0
    uploads: int = 0
    bytes: int = 0
    superseded: int = 0
    undeletable: int = 0
    pending_ops: int = 0
    rejected: int = 0
    spool: Path | None = None
    last_error: str | None = None
    gives_up_s: float | None = None

    @property
    def complete(self) -> bool:
        """Whether everything is in the store."""
        return not self.pending_ops and not self.rejected

    def describe(self) -> str:
        """One or a few lines for a person, with the way out where something is left."""
        lines = [
            f"tracking: {self.sent_metrics} points in {self.sent_batches} requests, "
            f"{self.uploads} uploads ({self.bytes / 1e6:.1f} MB)"
        ]
        if self.pending_ops:
            lines.append(
                f"{self.pending_ops} operations are not in the tracking store ({self.last_error or 'no time left'}); "
                + (f"`plato flush {self.spool}` sends them" if self.spool else "they are sent when the sweep goes on")
            )
        if self.rejected:
            where = f"{self.spool}/rejected.jsonl" if self.spool else "rejected.jsonl among the sweep's files"
            lines.append(f"the store refused {self.rejected} operations; see {where}")
        if self.undeletable:
            lines.append(f"the store cannot delete: {self.undeletable} checkpoints more than asked for stay in it")
        return "\n".join(lines)

"""The writer's books: what is done, set aside, to be let go of, and counted."""

import logging
from dataclasses import replace
from typing import Any

from plato_core.tracking.patience import may_pass
from plato_core.tracking.spool import Spool
from plato_core.tracking.summary import DrainSummary

logger = logging.getLogger(__name__)


class Ledger:
    """Keeps the books of one spool. Everything but ``sent`` and ``passes`` belongs to the writer's thread.

    Args:
        spool: The spool.

    Attributes:
        passes: Whether the last failure is one of a store that is away or busy, and has not refused.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.sent = DrainSummary()
        self.passes = False
        self.runs_changed = False
        self._release: list[str] = []

    def count(self, **more: int) -> None:
        """Add to the counters of the summary."""
        self.sent = replace(self.sent, **{name: getattr(self.sent, name) + n for name, n in more.items()})

    def note_error(self, error: str) -> None:
        """Remember the last failure."""
        self.sent = replace(self.sent, last_error=error)

    def note_away(self, error: Exception) -> None:
        """Remember a failure after which the same is tried again."""
        self.passes = may_pass(error)
        self.note_error(str(error))

    def reject(self, number: int, op: dict[str, Any], error: str) -> None:
        """Set an operation aside that the store refused for good; what it held stays in the spool."""
        logger.warning("the tracking store refused an operation of trial %s: %s", op.get("key"), error)
        self.spool.reject(op, error)
        self.spool.journal.done([number])
        self.note_error(error)

    def release(self, number: int, path: str) -> None:
        """An upload is done, or not needed any more: let go of what it held, once that is written down."""
        self.spool.journal.done([number])
        self._release.append(path)

    def commit(self) -> None:
        """Write down what is done."""
        if self.runs_changed:  # before the cursor: what that says is done must be known here
            self.spool.runs.save()
            self.runs_changed = False
        self.spool.journal.commit()
        while self._release:
            self.spool.release(self._release.pop())

"""What a prune did, for programs and in words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from plato_core.report.text import counted

Why = Literal["too old", "too many", "left over"]
WhyKept = Literal["within the limits", "unfinished", "running", "perhaps running", "unsent"]


class Gone(BaseModel):
    """A sweep whose files were removed, or would be.

    Attributes:
        sweep_id: The sweep.
        why: Which limit it was beyond, or that an earlier prune was cut off while at it.
        bytes: The size of its files.
        rejected: How many operations went with it that the tracker had refused for good, in its `rejected.jsonl`.
    """

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    why: Why
    bytes: int
    rejected: int = 0

    def describe(self) -> str:
        """The same as a line."""
        refused = f", with {counted(self.rejected, 'operation')} that the tracker refused (rejected.jsonl)"
        return f"{self.sweep_id}  {self.why}, {_size(self.bytes)}{refused if self.rejected else ''}"


class Kept(BaseModel):
    """A sweep that stays, and why."""

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    why: WhyKept


class Refused(BaseModel):
    """A sweep that should have gone and could not be removed, wholly or at all."""

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    error: str


class Pruned(BaseModel):
    """What became of the sweeps in a folder.

    Attributes:
        folder: The folder.
        dry_run: Whether nothing was really removed.
        gone: The sweeps removed, oldest first.
        kept: Those that stay, oldest first.
        failed: Those that could not be removed.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    dry_run: bool
    gone: tuple[Gone, ...]
    kept: tuple[Kept, ...]
    failed: tuple[Refused, ...]

    def describe(self) -> str:
        """What a person should know of it, one fact a line."""
        lines = [gone.describe() for gone in self.gone]
        done = "would remove" if self.dry_run else "removed"
        freed = _size(sum(gone.bytes for gone in self.gone))
        lines.append(f"{done} {counted(len(self.gone), 'sweep')}, {freed}; {self._kept()}")
        for kept in self.kept:
            if kept.why == "unsent":
                folder = self.folder / kept.sweep_id
                lines.append(f"{kept.sweep_id} holds results that are not in the tracking store: plato flush {folder}")
        lines += [f"{failed.sweep_id} could not be removed: {failed.error}" for failed in self.failed]
        return "\n".join(lines)

    def _kept(self) -> str:
        numbers = Counter(kept.why for kept in self.kept)
        reasons = ", ".join(f"{number} {why}" for why, number in numbers.items())
        return f"kept {len(self.kept)}: {reasons}" if self.kept else "kept none"


def _size(number: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} bytes"

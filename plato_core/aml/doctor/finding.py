"""What a check found: fine, worth a thought, or in the way of a job; and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from plato_core.report.text import plain

Level = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        level: How it is: a warning costs or may fail, and a job can run all the same.
        found: What was found.
        remedy: What to do about it; empty where nothing is to be done.
    """

    level: Level
    found: str
    remedy: str = ""


class Line(BaseModel):
    """A finding with the name of its check, as it is shown.

    Attributes:
        check: Its name.
        level: See `Finding`, as the others.
        found: ...
        remedy: ...
    """

    model_config = ConfigDict(frozen=True)

    check: str
    level: Level
    found: str
    remedy: str = ""

    def describe(self) -> str:
        """All of it on one line."""
        return f"{self.level:<8} {self.check:<14} {self.found}{f'; {self.remedy}' if self.remedy else ''}"


def fine(found: str) -> Finding:
    """Return that all is well."""
    return Finding("ok", found)


def warned(found: str, remedy: str) -> Finding:
    """Return that a job can run, but not as one may think."""
    return Finding("warning", found, remedy)


def broken(found: str, remedy: str) -> Finding:
    """Return that no job can run, or come to its end, like this."""
    return Finding("failed", found, remedy)


def skipped(found: str) -> Finding:
    """Return that it could not be looked at."""
    return Finding("skipped", found)


def of_error(error: Exception) -> Finding:
    """Return a failed check for an error of this project: its message ends with the way out, behind a semicolon."""
    found, _, remedy = plain(str(error)).rpartition("; ")
    return broken(found, remedy) if found else broken(remedy, "")

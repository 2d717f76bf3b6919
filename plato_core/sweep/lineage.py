"""Who exploited whom: one line of `lineage.jsonl` an exploit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LINEAGE_NAME = "lineage.jsonl"


@dataclass(frozen=True)
class Exploit:
    """One exploit and the perturbation that came with it.

    Attributes:
        time: Seconds since the epoch.
        trial: Tune's id of the trial that took over.
        trial_name: Its MLflow run's name.
        iteration: Its own iteration at that moment.
        score: Its scheduler metric then.
        donor: Tune's id of the trial whose policy it took.
        donor_name: That one's MLflow run's name.
        donor_iteration: The donor's own iteration at the checkpoint.
        donor_score: The donor's metric at the checkpoint.
        checkpoint: The checkpoint's artifact path in the donor's run.
        old: The trial's values before.
        new: Its values from then on.
        operations: How each new value came from the donor's.
    """

    time: float
    trial: str
    trial_name: str
    iteration: int
    score: float
    donor: str
    donor_name: str
    donor_iteration: int
    donor_score: float | None
    checkpoint: str
    old: dict[str, Any]
    new: dict[str, Any]
    operations: dict[str, str]


def append(path: Path, exploit: Exploit) -> None:
    """Adds an exploit to the lineage file."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(exploit)) + "\n")


def read(path: Path) -> list[Exploit]:
    """Reads a lineage file; one that is not there is an empty lineage."""
    if not path.exists():
        return []
    return [Exploit(**json.loads(line)) for line in path.read_text().splitlines()]

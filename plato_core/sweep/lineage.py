"""Who exploited whom: one line of `lineage.jsonl` an exploit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plato_core.sweep.folder import write_whole

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
    found = []
    # What follows the last line end a killed process had not written to its end; a loss of power may damage more.
    for line in path.read_text(errors="replace").split("\n")[:-1]:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(Exploit(**json.loads(line)))
    return found


def forget_beyond(path: Path, points: Mapping[str, tuple[int, bool]]) -> None:
    """Takes back the exploits that trials go on from before.

    Args:
        path: The lineage file.
        points: By the trial's id, the iteration that it goes on from, and whether that is an exploit.
    """
    exploits = read(path)
    if not exploits:
        return

    def stands(exploit: Exploit) -> bool:
        iteration, exploited = points.get(exploit.trial, (exploit.iteration, True))
        return exploit.iteration < iteration or (exploit.iteration == iteration and exploited)

    write_whole(path, "".join(json.dumps(asdict(exploit)) + "\n" for exploit in exploits if stands(exploit)))

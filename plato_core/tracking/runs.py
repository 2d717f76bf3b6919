"""What the writer knows of each trial's run, kept with the spool so that another process can go on."""

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plato_core.tracking.journal import write_json

# In the spool, and in the sweep's folder for when the spool is gone.
RUNS_NAME = "runs.json"


@dataclass
class RunRecord:
    """One trial's run.

    Attributes:
        run_id: Its id in the store; None as long as it has not been created.
        step: The last step that was journaled, 0 before the first.
        checkpoint: The iteration of the last checkpoint that was journaled, -1 before the first.
        ended: Whether an end was journaled.
        uploaded: Score (None: unknown) of each complete checkpoint in the store, by iteration. Replaced,
            never changed in place, since another thread may be reading it.
    """

    run_id: str | None = None
    step: int = 0
    checkpoint: int = -1
    ended: bool = False
    uploaded: dict[int, float | None] = field(default_factory=dict)

    def note(self, op: dict[str, Any]) -> None:
        """Bring the record up to date with an operation that is being journaled, or was."""
        match op["op"]:
            case "metrics":
                self.step = max(self.step, op["step"])
            case "checkpoint":
                self.checkpoint = max(self.checkpoint, op["iteration"])
            case "status":
                self.ended = op["status"] != "RUNNING"

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunRecord":
        """The inverse of :meth:`to_json`, also after a way through JSON, where keys are strings."""
        uploaded = {int(iteration): score for iteration, score in data["uploaded"].items()}
        return cls(**{**data, "uploaded": uploaded})


class RunTable(dict[str, RunRecord]):
    """The records by trial id, on disk in ``runs.json``.

    A file that a loss of power has damaged counts as none: the writer asks the store then.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self.update({k: RunRecord.from_json(v) for k, v in json.loads(path.read_bytes()).items()})

    @classmethod
    def of_spool(cls, spool: Path) -> "RunTable":
        """What is known of a sweep's runs.

        Args:
            spool: The sweep's spool. Of a trial that it does not know, what an earlier spool has left in the sweep's
                folder counts; where it is gone, all that was left there.
        """
        left = cls(spool.parent / RUNS_NAME)
        if not spool.is_dir():
            return left
        table = cls(spool / RUNS_NAME)
        table.update({key: record for key, record in left.items() if key not in table})
        return table

    def record(self, key: str) -> RunRecord:
        """The trial's record, made if there is none."""
        return self.setdefault(key, RunRecord())

    def save(self, path: Path | None = None) -> None:
        """Write them down, where they were read if nothing else is said."""
        write_json(path or self._path, {key: record.to_json() for key, record in list(self.items())})


def note_ended(spool: Path, runs: dict[str, str]) -> None:
    """Have trials that go on say RUNNING first, as somebody else has ended their runs.

    Args:
        spool: The sweep's spool, as for `RunTable.of_spool`.
        runs: Trial id to run id.
    """
    if not runs:
        return
    table = RunTable.of_spool(spool)
    for trial_id, run_id in runs.items():
        record = table.record(trial_id)
        record.run_id, record.ended = run_id, True
    table.save()

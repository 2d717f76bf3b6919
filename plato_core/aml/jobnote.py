"""Which job a sweep has that is run from this machine: a note in its folder, written before the job is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from plato_core.aml.workspace import Workspace
from plato_core.errors import ConfigError
from plato_core.sweep import folder

NOTE_NAME = "job.json"


class JobNote(BaseModel):
    """A sweep's newest job.

    Attributes:
        name: Of the job.
        number: It is the sweep's first (0), second...
        workspace: That it is in.
        storage: Where the sweep's folder is there.
        budget: What the sweep was allowed then; with more, a sweep that has ended trains on, in a new job.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    number: int
    workspace: Workspace
    storage: str
    budget: dict[str, Any]

    @classmethod
    def read(cls, sweep_dir: Path) -> Self | None:
        """Return the note in a sweep's folder; None if the sweep has no job."""
        try:
            return cls.model_validate_json((sweep_dir / NOTE_NAME).read_bytes())
        except (OSError, ValidationError):
            return None

    @classmethod
    def check(cls, sweep_dir: Path, workspace: Workspace, storage: str) -> None:
        """Refuse to go on with a sweep elsewhere than where its files are.

        Raises:
            ConfigError: It was begun in another workspace, or in another folder of a datastore.
        """
        note = cls.read(sweep_dir)
        if note is None:
            return
        for what, value, before in (
            ("workspace", str(workspace), str(note.workspace)),
            ("storage", storage, note.storage),
        ):
            if value != before:
                raise ConfigError(
                    f"job_variables.{what}: {value!r} is not where sweep {sweep_dir.name} was begun ({before!r}), and "
                    "its files are there; leave it as it was, or start a new sweep"
                )

    def lives(self) -> bool:
        """Ask Azure ML whether the job still does something; it does so without anybody here.

        Raises:
            AmlError: It cannot be asked.
        """
        from plato_core.aml.client import JobClient

        job = JobClient(self.workspace).find(self.name)
        return job is not None and not job.ended

    def write(self, sweep_dir: Path) -> None:
        """Put it into the sweep's folder."""
        folder.write_whole(sweep_dir / NOTE_NAME, self.model_dump_json())


def job_name(sweep_id: str, number: int) -> str:
    """Return the name of a sweep's job: of one length for all, as that of a flow run's (see `plato_core.aml.job`)."""
    return f"ps-{sweep_id}-{number:03d}"

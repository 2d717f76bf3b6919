"""Which job works on a sweep that is run from this machine: the one that it has, or a new one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plato_core.aml.client import JobClient, JobState
from plato_core.aml.job import COMMAND, JobSpec, job_spec
from plato_core.aml.jobnote import JobNote, job_name
from plato_core.aml.jobsettings import ORDER
from plato_core.aml.sweepsettings import SweepJobFields
from plato_core.aml.talk import Talk
from plato_core.config import SweepConfig
from plato_core.errors import PlatoError
from plato_core.resuming import BUDGET
from plato_core.sweep.protocol import TRACKING_FOLDER, Go, SweepOrder
from plato_core.tracking.runs import RunTable


@dataclass(frozen=True)
class Placed:
    """The job to follow.

    Attributes:
        name: Of the job.
        enough: Whether it was asked for all of the sweep; else a larger budget was given since, for a next job.
    """

    name: str
    enough: bool = True


class Placing:
    """Finds or submits the job of a sweep.

    Args:
        config: The sweep's.
        sweep_dir: Its folder on this machine.
        settings: Of the job.
        jobs: Of the workspace.
        go: Where the sweep is tracked.
        talk: With Azure ML.
        named: Told the job's name before there may be one.
    """

    def __init__(
        self,
        config: SweepConfig,
        sweep_dir: Path,
        settings: SweepJobFields,
        jobs: JobClient,
        go: Go,
        talk: Talk,
        named: Callable[[str], None],
    ) -> None:
        self._config, self._sweep_dir, self._settings, self._go = config, sweep_dir, settings, go
        self._jobs, self._talk, self._named = jobs, talk, named
        self._budget = {name: getattr(config, name) for name in BUDGET}

    def place(self, told_to_stop: Callable[[], bool]) -> Placed | None:
        """Returns the job to follow; None where the sweep was told to stop before there was one.

        A job that lives is followed, and so is one that has done all that it was asked for: its log has what the sweep
        told. Else there is a new one, whose name stands in the sweep's folder before it is submitted: whoever comes
        after this process finds it.

        Raises:
            PlatoError: It cannot be submitted.
        """
        note = JobNote.read(self._sweep_dir)
        job = None if note is None else self._ended_or_alive(note, told_to_stop)
        if note is not None and job is not None and self._is_to_follow(note, job):
            self._named(note.name)
            self._talk.say(f"job {note.name} is there already ({job.status}); following it")
            return Placed(note.name, enough=note.budget == self._budget)
        number = 0 if note is None else note.number + (job is not None)
        spec = self._spec(job_name(self._sweep_dir.name, number))
        if told_to_stop():
            return None
        JobNote(
            name=spec.name,
            number=number,
            workspace=self._jobs.workspace,
            storage=self._settings.storage,
            budget=self._budget,
        ).write(self._sweep_dir)
        self._talk.say(f"submitting job {spec.name} to {self._jobs.workspace}")
        self._talk.insist(lambda: self._jobs.check(spec))
        if told_to_stop():
            return None
        self._named(spec.name)
        self._talk.insist(lambda: self._submit(spec))
        return Placed(spec.name)

    def _ended_or_alive(self, note: JobNote, told_to_stop: Callable[[], bool]) -> JobState | None:
        """Returns the job as it is, once it is not just being cancelled."""
        while True:
            job = self._talk.insist(lambda: self._jobs.find(note.name))
            if job is None or job.status != "CancelRequested" or told_to_stop():
                return job
            self._talk.say(f"waiting for the end of job {job.name}")
            self._talk.pause()

    def _is_to_follow(self, note: JobNote, job: JobState) -> bool:
        return not job.ended or (job.status == "Completed" and note.budget == self._budget)

    def _spec(self, name: str) -> JobSpec:
        config, sweep_id = self._config, self._sweep_dir.name
        known = RunTable.of_spool(self._sweep_dir / TRACKING_FOLDER)
        ended = {trial: one.run_id for trial, one in known.items() if one.ended and one.run_id is not None}
        order = SweepOrder(sweep_id=sweep_id, config=config.flow_parameters(), go=self._go, ended=ended)
        return job_spec(
            self._settings,
            name=name,
            display_name=f"{config.algorithm} {config.env_name} x{config.num_tune_samples} {sweep_id}",
            command=COMMAND,
            experiment=config.experiment_name,
            tags={"plato.job_of": sweep_id},  # not as the sweep's own runs have it: the job's run is none of them
            env=self._settings.env | {ORDER: order.model_dump_json()},
        )

    def _submit(self, spec: JobSpec) -> None:
        """Submits the job; one that is there after an error, by this request or an earlier one, is submitted."""
        try:
            self._jobs.submit(spec)
        except PlatoError:
            if self._jobs.find(spec.name) is None:
                raise

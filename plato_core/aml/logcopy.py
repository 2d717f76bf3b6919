"""A job's log, copied into the log of its flow run: so many lines, however many gigabytes it has."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import LogCreate
from prefect.types._datetime import now

from plato_core.aml.joblog import JobLog

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    from plato_core.aml.asking import Questions
    from plato_core.aml.client import JobClient, JobState

LOG_LABEL = "plato.job-log"
_BATCH = 400  # log lines of one request


class LogCopy:
    """Copies a job's log, and goes on where a worker before this one was.

    Args:
        flow_run: Whose log it goes to, as it was when the watch began.
        most: Lines that are copied at most.
        jobs: The workspace's jobs.
        prefect: A client of the Prefect API.
        logger: Of the flow run.
    """

    def __init__(
        self,
        flow_run: FlowRun,
        most: int,
        jobs: JobClient,
        prefect: PrefectClient,
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._flow_run, self._most = flow_run, most
        self._jobs, self._prefect, self._logger = jobs, prefect, logger
        self._log: JobLog | None = None
        self._lines = 0

    async def copy(self, job: JobState, questions: Questions, page: str) -> None:
        """Copy new lines, and remember how far; after the last that may be copied, nothing is read any more.

        Args:
            job: As it is now.
            questions: Asks Azure ML.
            page: Where all of the log is.
        """
        log = self.log(job)
        if self._lines >= self._most:
            return
        offset = log.offset
        found = await questions.ask(log.new_lines, job.ended, self._most - self._lines)
        if not found or (log.offset == offset and not found[0]):
            return
        shown = found[0][: self._most - self._lines]
        self._lines += len(shown)
        if self._lines >= self._most or (job.ended and log.behind):
            self._lines = self._most
            shown.append(f"Further lines of the job's log are in Studio: {page or job.name}")
        try:
            for begin in range(0, len(shown), _BATCH):
                await self._prefect.create_logs([self._entry(line) for line in shown[begin : begin + _BATCH]])
            # After them: a worker that dies in between repeats some lines, and loses none.
            label = f"{job.name}:{log.offset}:{self._lines}"
            await self._prefect.update_flow_run_labels(self._flow_run.id, {LOG_LABEL: label})
        except Exception as error:
            self._logger.debug("Lines of the job's log could not be sent: %s", error)

    def log(self, job: JobState) -> JobLog:
        """Return the job's log, at the place that was reached."""
        if self._log is None:
            self._log = JobLog(self._jobs, job.name, job.experiment)
            name, _, rest = str(self._flow_run.labels.get(LOG_LABEL, "")).partition(":")
            offset, _, lines = rest.partition(":")
            if name == job.name and offset.isdecimal() and lines.isdecimal():
                self._log.offset, self._lines = int(offset), int(lines)
        return self._log

    def _entry(self, line: str) -> LogCreate:
        entry = {"name": "azure-ml.job", "level": logging.INFO, "message": line, "timestamp": now("UTC")}
        return LogCreate.model_validate(entry | {"flow_run_id": self._flow_run.id})

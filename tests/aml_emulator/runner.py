"""Runs jobs for real: through Azure ML's states, again after a preemption, until the command has ended."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aml_emulator import processes
from aml_emulator.addresses import node_addresses
from aml_emulator.artifacts import Artifacts
from aml_emulator.job_environment import JobError, World, base_variables, copy_code, mounted
from aml_emulator.mlflow_limits import MlflowLimits
from aml_emulator.mlflow_server import MlflowServer
from aml_emulator.nodes import Nodes
from aml_emulator.state import Job, State, now_text
from aml_emulator.tokens import Tokens

_MLFLOW = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}
_SYNC_S, _POLL_S = 1.0, 0.1
_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?")


@dataclass(frozen=True)
class Pace:
    """How long things take.

    Args:
        phase_s: In each state before the command runs.
        grace_s: Between asking a command to end and killing it.
        node_cpus: Of each node of a Ray distribution; None: as many as the machine has.
    """

    phase_s: float
    grace_s: float
    node_cpus: int | None


class _Ended(Exception):
    """The job ends here, with a state and perhaps an error."""

    def __init__(self, status: str, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.error = status, {"code": code, "message": message} if code else None


class _Preempted(Exception):
    pass


class Runner:
    """One thread for each job."""

    def __init__(
        self,
        state: State,
        tokens: Tokens,
        mlflow: MlflowServer,
        limits: MlflowLimits,
        artifacts: Artifacts,
        world: World,
        pace: Pace,
    ) -> None:
        self._state, self._tokens, self._mlflow, self._limits = state, tokens, mlflow, limits
        self._artifacts, self._world, self._pace = artifacts, world, pace

    def submit(self, name: str, properties: dict[str, Any]) -> Job:
        """Makes the job and its own MLflow run, and returns while it is not yet started."""
        experiment = properties.get("experimentName") or "Default"
        experiment_id = self._mlflow.experiment(experiment)
        shown = properties.get("displayName") or name
        tags = {key: str(value) for key, value in (properties.get("tags") or {}).items()}
        tags |= {"mlflow.runName": shown, "mlflow.source.type": "JOB", "mlflow.user": "emu"}
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        wanted = {"experiment_id": experiment_id, "run_name": shown, "start_time": _millis(), "tags": listed}
        made = self._mlflow.call("runs/create", wanted)["run"]["info"]["run_id"]
        self._limits.created(name, listed)
        job = Job(name, properties, experiment, experiment_id, made)
        self._state.jobs[name] = job
        threading.Thread(target=self._run, args=(job,), daemon=True, name=name).start()
        return job

    def _run(self, job: Job) -> None:
        ended = _Ended("Failed")
        while True:
            try:
                self._attempt(job)
            except _Preempted:
                if self._queue_again(job):
                    continue
                ended = _Ended("Canceled")
            except _Ended as how:
                ended = how
            except JobError as error:
                ended = _Ended("Failed", "UserError", str(error))
            except Exception as error:
                traceback.print_exc()
                ended = _Ended("Failed", "SystemError", repr(error))
            break
        self._mlflow.call(
            "runs/update", {"run_id": job.run_uuid, "status": _MLFLOW[ended.status], "end_time": _millis()}
        )
        job.error, job.ended = ended.error, now_text()
        self._state.set_status(job, ended.status)

    def _queue_again(self, job: Job) -> bool:
        """Whether a preempted job waits for nodes again; one that was cancelled meanwhile does not."""
        with self._state.changed:
            if job.status == "CancelRequested":
                return False
            job.stop.clear()
            job.why = ""
            self._state.set_status(job, "Queued")
            return True

    def _attempt(self, job: Job) -> None:
        for status in ("Starting", "Provisioning", "Preparing") if job.attempt == 0 else ():
            self._state.set_status(job, status)
            self._planned_failure(status)
            if job.stop.wait(self._pace.phase_s):
                self._stopped(job)
        compute = self._state.computes[job.compute]
        self._wait_in_queue(job)
        try:
            self._on_nodes(job)
        finally:
            with self._state.changed:
                compute.busy -= job.nodes
                self._state.changed.notify_all()

    def _wait_in_queue(self, job: Job) -> None:
        """Takes the job's nodes when they are free and the queue is not held."""
        compute = self._state.computes[job.compute]
        self._state.set_status(job, "Queued")
        self._planned_failure("Queued")
        if job.stop.wait(self._pace.phase_s):
            self._stopped(job)
        if compute.quota is not None and job.nodes > compute.quota:
            message = (
                f"The requested VM size {compute.vm_size} needs more cores than the quota of the subscription in this "
                f"region: requested nodes {job.nodes}, available {compute.quota}. Request a quota increase."
            )
            raise _Ended("Failed", "ClusterCoreQuotaReached", message)
        with self._state.changed:
            while self._state.queue_held or compute.busy + job.nodes > compute.max_nodes:
                if job.stop.is_set():
                    break
                self._state.changed.wait(1.0)
            if not job.stop.is_set():
                compute.busy += job.nodes
                return
        self._stopped(job)

    def _on_nodes(self, job: Job) -> None:
        job.attempt += 1
        folder = self._state.root / "jobs" / job.name / f"attempt-{job.attempt}"
        short = tempfile.mkdtemp(prefix=processes.SHORT + self._state.id, dir="/tmp")  # sockets: at most 107 bytes
        try:
            with node_addresses(job.nodes) as addresses:
                job.addresses = addresses
                variables = base_variables(job, self._tokens, self._world, folder, addresses)
                variables |= {"RAY_TMPDIR": short}
                command = mounted(job, self._state, folder, variables)
                logs = self._artifacts.root(job.name)
                nodes = Nodes(self._state.id, job.name, addresses, folder, logs, variables)
                for node in range(job.nodes):
                    copy_code(job, self._state, nodes.working_folder(node))
                self._planned_failure("Running")
                self._state.set_status(job, "Running")
                job.started = job.started or now_text()
                try:
                    nodes.start(command, job.properties.get("distribution") or {}, self._pace.node_cpus)
                    self._watch(job, nodes)
                finally:
                    nodes.stop(0.0)
        finally:
            processes.kill_job(self._state.id, job.name)
            shutil.rmtree(short, ignore_errors=True)
            shutil.rmtree(folder / "mounts", ignore_errors=True)  # the next has its own, at another place

    def _watch(self, job: Job, nodes: Nodes) -> None:
        """Waits for the command; raises how it ended."""
        limit = _seconds((job.properties.get("limits") or {}).get("timeout"))
        began, synced = time.monotonic(), 0.0
        while (code := nodes.poll()) is None:
            if limit and time.monotonic() - began > limit:
                self._state.ask_to_stop(job, "timeout")
            if job.stop.wait(_POLL_S):
                nodes.stop(job.notice_s if job.why == "preempt" else self._pace.grace_s)
                if job.why != "preempt":
                    self._sync(job, nodes, "logs", "outputs")
                self._stopped(job)
            if time.monotonic() - synced > _SYNC_S:
                self._sync(job, nodes, "logs")
                synced = time.monotonic()
        self._state.set_status(job, "Finalizing")
        nodes.stop(0.0)
        self._sync(job, nodes, "logs", "outputs")
        if job.why == "cancel":
            raise _Ended("Canceled")
        if code:
            process = (job.properties["command"].split() or ["bash"])[0]
            message = (
                f"Execution failed. User process '{process}' exited with status code {code}. "
                "Please check log file 'user_logs/std_log.txt' for error details."
            )
            raise _Ended("Failed", "UserError", message)
        raise _Ended("Completed")

    def _stopped(self, job: Job) -> None:
        if job.why == "preempt":
            raise _Preempted
        if job.why == "timeout":
            limit = (job.properties.get("limits") or {}).get("timeout")
            raise _Ended("Canceled", "UserError", f"The job was canceled: it exceeded its time limit of {limit}.")
        raise _Ended("Canceled")

    def _planned_failure(self, status: str) -> None:
        with self._state.changed:
            for planned in self._state.planned_failures:
                if planned["at"] == status:
                    self._state.planned_failures.remove(planned)
                    raise _Ended("Failed", planned["code"], planned["message"])

    def _sync(self, job: Job, nodes: Nodes, *folders: str) -> None:
        """Uploads the working folders' `logs` and `outputs`; what is there under the same path stays, in `outputs`."""
        target = self._artifacts.root(job.name)
        for node in range(job.nodes):
            working = nodes.working_folder(node)
            for file in [file for name in folders for file in (working / name).rglob("*") if file.is_file()]:
                relative = file.relative_to(working)
                if relative.parts[0] == "outputs" and (target / relative).exists():
                    continue
                with contextlib.suppress(FileNotFoundError):  # a file that the job has just moved
                    _copy(file, target / relative)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _millis() -> int:
    return int(time.time() * 1000)


def _seconds(duration: str | None) -> float | None:
    """Returns the length of an ISO 8601 duration, such as `PT1H30M`."""
    if not duration or not (found := _DURATION.fullmatch(duration)):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

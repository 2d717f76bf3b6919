"""The program of an Azure ML job: `python -m plato_core.aml.entry` executes one flow run, and says how it ended.

Or it runs a sweep for a flow elsewhere: :mod:`plato_core.aml.sweepentry`.

Prefect's own `prefect flow-run execute` ends with 0 also where the flow failed, and Azure ML would call such a job
Completed. What is to be done stands in the environment (`JobSettings`); the folder that the job starts in has the code.

Told to stop, it lets the flow of a cancelled run end the run. Else its node is taken away, and Azure ML begins the
job again elsewhere: the run stays as it is, and goes on there.

Exit codes: 0 the run is Completed, 1 it is not, 2 bad input or another version of Ray, 143 Cancelled or told to stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil
import stamina

from plato_core.aml import nodes, versions
from plato_core.aml.flowrun import OVERDUE_S, FlowRunReader, Overdue, ends_in_order, exit_code
from plato_core.aml.jobsettings import QUIET, JobSettings, Rank, SweepSettings, read_settings
from plato_core.aml.secrets import secret
from plato_core.aml.sweepentry import run_sweep
from plato_core.errors import AmlUnavailable, PlatoError
from plato_core.processes import kill, wait_gone
from plato_core.sweep.environment import ENVIRONMENT
from plato_core.sweep.process import kill_session

TERMINATED = 128 + signal.SIGTERM
# A sweep ends in order within 20 s, and then its runs are closed.
_ENDS_WITHIN_S = 90.0
_TICK_S = 0.5
_SECRETS_WITHIN_S = 120.0  # a node that has just started may not have its identity yet
_LOOK_S = 60.0  # whether the run has ended without its process


class _Term:
    """SIGTERM, which Azure ML sends when a job is cancelled or its node is taken away."""

    def __init__(self) -> None:
        self.came_at: float | None = None
        signal.signal(signal.SIGTERM, self._on_signal)

    def came(self) -> bool:
        return self.came_at is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.came_at is None:
            self.came_at = time.monotonic()


def main() -> int:
    """Runs this node's part of the job."""
    term = _Term()
    os.environ.update(
        {"TZ": "UTC"} | {name: value for name, value in (ENVIRONMENT | QUIET).items() if name not in os.environ}
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        job = read_settings()
        versions.check_ray(job.ray_version)
        if job.launcher != "mpi":
            return _run(job, "auto" if job.launcher == "ray" else "local", None, term)
        rank = Rank.read()
        if rank.number == 0:
            with nodes.Head(job, rank, nodes.ray_environment(), term.came) as head:
                _say(f"Ray's head answers at {head.address}")
                return _run(job, "auto", head.address, term)
        _say(f"rank {rank.number} joins Ray's head at {rank.head}")
        done = nodes.follow(job, rank, nodes.ray_environment(), term.came)
        _say(f"rank {rank.number}: the head's work is done" if done else f"rank {rank.number}: told to stop")
        return 0 if done else TERMINATED
    except PlatoError as error:
        _say(str(error))
        return error.exit_code


def _run(job: JobSettings | SweepSettings, ray_address: str, ray_head: str | None, term: _Term) -> int:
    if isinstance(job, SweepSettings):
        # With `auto` Ray goes by this before it looks for the newest Ray of the machine.
        os.environ.update({} if ray_head is None else {"RAY_ADDRESS": ray_head})
        return run_sweep(job, ray_address, term.came)
    return _run_flow(job, ray_address, ray_head, term)


def _run_flow(job: JobSettings, ray_address: str, ray_head: str | None, term: _Term) -> int:
    secrets = _secrets(job)
    reader = FlowRunReader(job, secrets)
    before = reader.state("some")
    if before.final:
        _say(f"nothing to do: flow run {job.flow_run_id} is {before.name} already")
        return exit_code(before.kind, told_to_stop=term.came())
    _say(f"executing flow run {job.flow_run_id} of {job.shown_api_url}")
    _execute(job, _flow_environment(job, ray_address, ray_head) | secrets, reader, term)
    # A node that is taken away leaves no time for an API that does not answer.
    after = reader.glance() if term.came() else reader.state("much")
    if after is None:
        return TERMINATED
    _say(f"flow run {job.flow_run_id} is {after.name}" + (f": {after.message}" if after.message else ""))
    return exit_code(after.kind, told_to_stop=term.came())


@stamina.retry(on=AmlUnavailable, attempts=8, timeout=_SECRETS_WITHIN_S, wait_max=30.0)
def _secrets(job: JobSettings) -> dict[str, str]:
    asked = {"PREFECT_API_KEY": job.api_key_secret, "PREFECT_API_AUTH_STRING": job.api_auth_secret}
    return {name: secret(url) for name, url in asked.items() if url is not None}


def _flow_environment(job: JobSettings, ray_address: str, ray_head: str | None) -> dict[str, str]:
    """The flow's environment; what the user has set of it stays."""
    given = {
        "PLATO_STORAGE_PATH": job.sweeps,
        # Where a run that is tried again, in another job, finds what its tasks had returned.
        "PREFECT_LOCAL_STORAGE_PATH": os.path.join(job.sweeps, ".results"),
        "PLATO_LOCAL_PATH": os.path.join("outputs", "model_checkpoints"),  # Azure ML keeps `outputs` with the job
        "PLATO_RAY_ADDRESS": ray_address,
        "PLATO_RAY_NODES": str(job.nodes),
        "PLATO_RAY_WAIT_S": f"{job.node_wait_s:g}",
    }
    # With `auto` Ray goes by this before it looks for the newest Ray of the machine.
    found = {} if ray_head is None else {"RAY_ADDRESS": ray_head}
    return {**given, **os.environ, **found}


def _execute(job: JobSettings, environment: dict[str, str], reader: FlowRunReader, term: _Term) -> None:
    """Runs the flow to its end, and ends it where this process is told to stop or it outlives its run."""
    if term.came():
        return
    command = [sys.executable, "-m", "prefect", "flow-run", "execute", str(job.flow_run_id)]
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        _attend(child, reader, term)
    finally:
        kill_session(child.pid)
        child.wait()


def _attend(child: subprocess.Popen[bytes], reader: FlowRunReader, term: _Term) -> None:
    """Waits for the child's end; returns before it where the child is to be killed."""
    overdue, looked_at, told = Overdue(), time.monotonic(), False
    while child.poll() is None:
        now = time.monotonic()
        if term.came_at is None:
            if now - looked_at >= _LOOK_S:
                looked_at = now
                if overdue.after(reader.glance(), now):
                    _say(f"the flow run has ended {OVERDUE_S:g} s ago, and its process has not: killed")
                    return
        elif not told:
            told = True
            if not ends_in_order(reader.glance()):
                _leave(child)
                return
            _forward(child)
        elif now - term.came_at > _ENDS_WITHIN_S:
            _say(f"the flow run has not ended within {_ENDS_WITHIN_S:g} s of being told to: killed")
            return
        time.sleep(_TICK_S)


def _forward(child: subprocess.Popen[bytes]) -> None:
    """Tells the flow's own process. Prefect's command above it would end first, and leave it to itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        own = psutil.Process(child.pid)
        for process in own.children() or [own]:
            process.terminate()


def _leave(child: subprocess.Popen[bytes]) -> None:
    """Ends the flow where it is, so that it does not end its run; the sweep, which misses it, ends in order."""
    _say("told to stop while the flow run is not cancelled: it goes on when the job begins again")
    try:
        own = psutil.Process(child.pid)
        flow, left = own.children(), own.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    kill((own, *flow))  # Prefect's command first, which else would call the run crashed
    kill_session(child.pid)  # the sweep has one of its own
    kill(wait_gone(left, _ENDS_WITHIN_S))


def _say(line: str) -> None:
    print(f"plato: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

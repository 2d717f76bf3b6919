"""Sweeps whose flow stays on a laptop, with jobs on an emulated Azure ML that do not train: `aml_untrained.py`.

The command is the user's own, and so is all that it does: only in the job the sweep's process is another.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aml_tracks import STEPS, TRIALS, UNTIL, assert_tracked_once
from aml_worker_bed import Bed
from stack import ROOT
from waiting import wait_until

from plato_core.manifest import read_manifest, verify

_ENDS_WITHIN_S = 200.0
_CANCELLED_WITHIN_S = 180.0  # a cancel is asked again for 90 s
_TRIES = 10  # where many endpoints fail in the same run, some end a command
_SWEEP = ROOT / "flows" / "sweep_and_fetch.py"
_PACKAGE = "__path__.append({real!r})\n"
_MAIN = "from aml_untrained import main\n\nfrom plato_core.processes import leave\n\nleave(main())\n"


def code_of_a_job(folder: Path) -> Path:
    """Writes what is uploaded: the project's packages, of which only the sweep's process is another."""
    (sweep := folder / "plato_core" / "sweep").mkdir(parents=True)
    for package in (sweep.parent, sweep):
        real = ROOT / package.relative_to(folder)
        (package / "__init__.py").write_text(_PACKAGE.format(real=str(real)))
    (sweep / "__main__.py").write_text(_MAIN)
    return folder


@dataclass
class Command:
    """A command that runs on the laptop.

    Args:
        process: Its own session's leader.
        log: What it says, on both ways.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ended(self, within_s: float = _ENDS_WITHIN_S) -> int:
        """Its exit code, at its end."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end within {within_s:g} s: {self.said}") from None

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Home:
    """A laptop, in a folder beside the project of the worker.

    Args:
        bed: Server and workspace; no worker is needed.
        within_s: How long each run may take.
    """

    bed: Bed
    within_s: float = _ENDS_WITHIN_S

    def job(self) -> None:
        """A sweep from its submission to the checkpoint on the laptop."""
        sweep = self._start()
        try:
            result = sweep.result(self.within_s)
        finally:
            sweep.command.kill()
        sweep.assert_whole(result)

    def cancel_and_go_on(self) -> HomeSweep:
        """Ctrl-C while the job trains: it is cancelled, no run stays RUNNING, and a second job has what is missing."""
        sweep = self._start(until=False)
        try:
            sweep.wait_for_trials(self.within_s)
            sweep.command.interrupt()
            assert sweep.command.ended(_CANCELLED_WITHIN_S) == 130, sweep.command.said
        finally:
            sweep.command.kill()
        assert f"plato sweep --resume {sweep.sweep_id}" in sweep.command.said
        assert self.bed.job_ended(sweep.job) == "Canceled"
        sweep.assert_jobs()
        sweep.assert_tracked(status="KILLED")
        sweep.until.touch()
        try:
            sweep.go_on_in_a_new_job(self.within_s)
            result = sweep.result(self.within_s)
        finally:
            sweep.command.kill()
        sweep.assert_whole(result)
        return sweep

    def adopted(self) -> None:
        """A client that is killed while the job trains, and a second one that follows the job to its end."""
        sweep = self._start(until=False)
        try:
            sweep.wait_for_trials(self.within_s)
        finally:
            sweep.command.kill()
        try:
            sweep.follow(self.within_s)
            sweep.until.touch()
            result = sweep.result(self.within_s)
        finally:
            sweep.command.kill()
        sweep.assert_whole(result)

    def _start(self, until: bool = True) -> HomeSweep:
        """A sweep that has its job; what ends with one line before that is typed again, as somebody there would."""
        said = ""
        for _ in range(_TRIES):
            sweep = self._typed(until)
            if sweep.has_its_job(self.within_s):
                return sweep
            said = sweep.command.said
        raise AssertionError(f"no job after {_TRIES} commands: {said}")

    def _typed(self, until: bool) -> HomeSweep:
        bed = self.bed
        number = 1 + len(list(bed.folder.parent.glob("laptop-*")))
        folder = bed.folder.parent / f"laptop-{number}"
        code = code_of_a_job(folder / "code")
        (code / "marker.txt").write_text(f"{number}\n")  # code and image are others each time
        (image := folder / "image").mkdir()
        (image / "Dockerfile").write_text(f"FROM python:3.11\n# laptop {number}\n")
        if until:
            (folder / "until").touch()
        paths = ":".join(str(path) for path in (ROOT / "tests", ROOT / "tests" / "integration"))
        settings: dict[str, Any] = {
            "compute": "aml",
            "preset": "test-local",
            "experiment_name": f"home-{number:04d}",
            "num_tune_samples": len(TRIALS),
            "max_iterations": STEPS,
            "stop_reward": 501,  # out of reach
            "seed": 3,
            "job_variables": {
                "code": str(code),
                "environment": str(image),
                "poll_interval_s": 0.5,
                "env": {
                    "PYTHONPATH": f"{ROOT}:{paths}",
                    UNTIL: str(folder / "until"),
                    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
                },
            },
        }
        (folder / "home.yaml").write_text(json.dumps(settings))
        sweep = HomeSweep(bed, folder, settings["experiment_name"])
        sweep.run("--config", "home.yaml")
        return sweep


@dataclass
class HomeSweep:
    """One sweep of the laptop.

    Args:
        bed: Server and workspace.
        folder: That the command is typed in.
        experiment: Its experiment.
        commands: Those that were typed.
        jobs: How many it is to have had.
    """

    bed: Bed
    folder: Path
    experiment: str
    commands: list[Command] = field(default_factory=list)
    jobs: int = 1

    @property
    def until(self) -> Path:
        """The trials end when this file is there."""
        return self.folder / "until"

    @property
    def command(self) -> Command:
        """The newest."""
        return self.commands[-1]

    @property
    def sweep_id(self) -> str:
        [found] = (self.folder / ".plato" / "sweeps").glob("*-*-*")
        return found.name

    @property
    def _due(self) -> list[str]:
        return [f"ps-{self.sweep_id}-{number:03d}" for number in range(self.jobs)]

    @property
    def job(self) -> str:
        """The newest."""
        return self._due[-1]

    def run(self, *arguments: str) -> None:
        """Starts a command, which speaks JSON at its end."""
        log = self.folder / f"said-{len(self.commands)}"
        environment = self.bed.environment | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(_SWEEP), *arguments, "--json"],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self.commands.append(Command(process, log))

    def has_its_job(self, within_s: float) -> bool:
        """Waits for the job; False if the command ended in order before."""
        return self._comes_to(lambda: bool(self._made()), within_s)

    def follow(self, within_s: float) -> None:
        """Starts a second client, which follows the job; again if it ended in order before."""
        self._resume(lambda: f"job {self.job} is there already" in self.command.said, within_s)

    def go_on_in_a_new_job(self, within_s: float) -> None:
        """Starts a client that has the sweep go on in a job of its own; again if it ended in order before."""
        self.jobs += 1
        self._resume(lambda: self.job in self._made(), within_s)

    def _resume(self, there: Callable[[], bool], within_s: float) -> None:
        for _ in range(_TRIES):
            self.run("--resume", "last")
            if self._comes_to(there, within_s):
                return
        raise AssertionError(f"not so far with {_TRIES} commands: {self.command.said}")

    def _comes_to(self, there: Callable[[], bool], within_s: float) -> bool:
        wait_until(lambda: self.command.process.poll() is not None or there(), "the command comes so far", within_s)
        if there():
            return True
        assert self.command.process.poll() in (1, 2), self.command.said  # 2: before anything was made
        assert not {"Traceback", "stamina"} & set(self.command.said.replace(".", " ").split()), self.command.said
        return False

    def result(self, within_s: float) -> dict[str, Any]:
        """What the command says at its end, which must be a good one."""
        assert self.command.ended(within_s) == 0, self.command.said
        return json.loads(self.command.said.splitlines()[-1])

    def wait_for_trials(self, within_s: float) -> None:
        """Waits until the laptop has heard of the trials."""

        def heard() -> bool:
            assert self.command.process.poll() is None, self.command.said
            return "trials were tracked" in self.command.said

        wait_until(heard, "the laptop hears of the trials", within_s)

    def assert_whole(self, result: dict[str, Any]) -> None:
        """As many jobs as there should be, everything tracked once, and the checkpoint here."""
        checkpoint = Path(result["checkpoint_path"])
        assert checkpoint.is_relative_to(self.folder / "model_checkpoints")
        assert verify(checkpoint, read_manifest(checkpoint)) == []
        assert self.bed.job_ended(self.job) == "Completed"
        self.assert_jobs()
        self.assert_tracked()

    def _made(self) -> list[str]:
        """The jobs that are there; none while the sweep has no id."""
        sweeps = [path.name for path in (self.folder / ".plato" / "sweeps").glob("*-*-*")]
        return [name for name in self.bed.emulator.jobs() if any(sweep in name for sweep in sweeps)]

    def assert_jobs(self) -> None:
        assert self._made() == self._due
        assert {self.bed.emulator.job(name)["attempt"] for name in self._due} == {1}

    def assert_tracked(self, status: str = "FINISHED") -> None:
        """Asks what is tracked; of a sweep that was stopped, a checkpoint may still wait with the sweep's files."""
        parent = json.loads((self.folder / ".plato" / "sweeps" / self.sweep_id / "parent.json").read_text())["run_id"]
        jobs = [self.bed.emulator.job(name)["run_uuid"] for name in self._due]
        held = self.bed.emulator.datastore(f"plato/sweeps/{self.sweep_id}/tracking/held")
        assert_tracked_once(
            self.bed.emulator, self.experiment, [parent], jobs, status, held if status == "KILLED" else None
        )

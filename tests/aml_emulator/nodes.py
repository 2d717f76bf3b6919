"""The nodes of a job as processes: one command, Ray's head and workers with a command, or a command on every rank."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aml_emulator import processes
from aml_emulator.addresses import free_port, listens
from aml_emulator.job_environment import JobError

_RAY_STARTS_WITHIN_S = 90.0
_MPI_KILLS_AFTER_S = 5.0


@dataclass
class Nodes:
    """Processes of one attempt of a job.

    Args:
        emulator: The emulator's id.
        job: The job's name.
        addresses: One for each node.
        folder: Of this attempt; node i works in `node-<i>/wd`.
        logs: Where `user_logs` and `system_logs` are.
        variables: Of every node.
    """

    emulator: str
    job: str
    addresses: list[str]
    folder: Path
    logs: Path
    variables: Mapping[str, str]
    _commands: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def working_folder(self, node: int) -> Path:
        return self.folder / f"node-{node}" / "wd"

    def start(self, command: str, distribution: Mapping[str, Any], node_cpus: int | None) -> None:
        """Starts all.

        Raises:
            JobError: If Ray's head does not come up.
        """
        match distribution.get("distributionType"):
            case "Ray":
                self._start_command(command, 0, {"RAY_ADDRESS": self._start_ray(distribution, node_cpus)})
            case "Mpi":
                each = int(distribution.get("processCountPerInstance") or 1)
                for rank in range(len(self.addresses) * each):
                    self._start_command(command, rank // each, self._rank(rank, each), rank)
            case _:
                self._start_command(command, 0, {})

    def poll(self) -> int | None:
        """Returns the exit code of the command once it has ended on all nodes, or badly on one."""
        codes = [process.poll() for process in self._commands]
        for code in codes:
            if code:
                self._interrupt(_MPI_KILLS_AFTER_S)  # as mpirun ends the other ranks
                return code if code > 0 else 128 - code
        return 0 if all(code == 0 for code in codes) else None

    def stop(self, grace_s: float) -> None:
        """Interrupts the command, and ends after some seconds what is left on any node."""
        self._interrupt(grace_s)
        processes.kill_job(self.emulator, self.job)

    def _interrupt(self, grace_s: float) -> None:
        for process in self._commands:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(process.poll() is None for process in self._commands) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _start_command(self, command: str, node: int, more: Mapping[str, str], rank: int = 0) -> None:
        log = "std_log.txt" if rank == 0 else f"std_log_process_{rank}.txt"
        self._commands.append(
            self._popen(
                ["/bin/bash", "-c", command], node, more, self.logs / "user_logs" / log, self.working_folder(node)
            )
        )

    def _popen(
        self, command: list[str], node: int, more: Mapping[str, str], log: Path, folder: Path
    ) -> subprocess.Popen[bytes]:
        environment = {**self.variables, **more, **processes.marker(self.emulator, self.job, node), "PWD": str(folder)}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as opened:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _rank(self, rank: int, each: int) -> dict[str, str]:
        node, size = rank // each, str(len(self.addresses) * each)
        return {
            "AZUREML_CR_NODE_RANK": str(node),
            "AZ_BATCHAI_JOB_MASTER_NODE_IP": self.addresses[0],
            "AZ_BATCH_MASTER_NODE": f"{self.addresses[0]}:6105",
            "PLATO_NODE_IP": self.addresses[node],  # on real nodes the one network says it
            "OMPI_COMM_WORLD_RANK": str(rank),
            "OMPI_COMM_WORLD_SIZE": size,
            "OMPI_COMM_WORLD_LOCAL_RANK": str(rank % each),
            "RANK": str(rank),
            "WORLD_SIZE": size,
            "LOCAL_RANK": str(rank % each),
            "NODE_RANK": str(node),
            "MASTER_ADDR": self.addresses[0],
            "MASTER_PORT": "6105",
        }

    def _start_ray(self, distribution: Mapping[str, Any], node_cpus: int | None) -> str:
        head = self.addresses[0]
        port = int(distribution.get("port") or free_port(head))
        started = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
        ]  # telemetry is left to the job's variables
        started += [f"--num-cpus={node_cpus}"] if node_cpus else []
        dashboard = str(bool(distribution.get("includeDashboard"))).lower()
        for node, address in enumerate(self.addresses):
            if node == 0:
                more = ["--head", f"--port={port}", f"--include-dashboard={dashboard}"]
                more += [f"--temp-dir={self.variables['RAY_TMPDIR']}"]
                more += shlex.split(distribution.get("headNodeAdditionalArgs") or "")
            else:
                more = [f"--address={head}:{port}", *shlex.split(distribution.get("workerNodeAdditionalArgs") or "")]
            agent = f"--dashboard-agent-listen-port={free_port(address)}"
            command = [*started, f"--node-ip-address={address}", agent, *more]
            log = self.logs / "system_logs" / "ray" / f"node_{node}.txt"
            process = self._popen(command, node, {}, log, self.working_folder(node))
            if node == 0:
                _wait_for_head(process, head, port)
        return f"{head}:{port}"


def _wait_for_head(process: subprocess.Popen[bytes], address: str, port: int) -> None:
    deadline = time.monotonic() + _RAY_STARTS_WITHIN_S
    while not listens(address, port):
        if process.poll() is not None:
            raise JobError(
                f"ray start on the head node exited with {process.returncode}; see system_logs/ray/node_0.txt"
            )
        if time.monotonic() > deadline:
            raise JobError("ray start on the head node does not answer; see system_logs/ray/node_0.txt")
        time.sleep(0.1)

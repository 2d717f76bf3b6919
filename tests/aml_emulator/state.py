"""What the workspace holds: jobs, code, environments, computes, secrets, the queue."""

from __future__ import annotations

import datetime as dt
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TERMINAL = frozenset({"Completed", "Failed", "Canceled"})


def now_text() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Compute:
    """A cluster: its size, and who uses it.

    Attributes:
        quota: Nodes that the subscription may have of its family; a job that needs more is accepted and then fails.
        min_nodes: That are kept without a job.
        identity: Whether it has a managed identity of its own.
    """

    vm_size: str
    max_nodes: int
    priority: str = "Dedicated"
    kind: str = "AmlCompute"
    quota: int | None = None
    busy: int = 0
    min_nodes: int = 0
    identity: bool = True


@dataclass
class Code:
    properties: dict[str, Any]
    folder: Path
    hash: str | None


@dataclass
class Job:
    """A command job.

    Attributes:
        run_uuid: What the MLflow server calls the job's own run.
        stop: Set when it is to end before its command does; `why` says the reason.
        why: "", "cancel", "preempt" or "timeout".
        notice_s: Between asking a preempted job's command to end and killing it.
    """

    name: str
    properties: dict[str, Any]
    experiment: str
    experiment_id: str
    run_uuid: str
    status: str = "NotStarted"
    created: str = field(default_factory=now_text)
    started: str | None = None
    ended: str | None = None
    error: dict[str, str] | None = None
    attempt: int = 0
    addresses: list[str] = field(default_factory=list)
    token: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    why: str = ""
    notice_s: float = 0.0
    history: list[str] = field(default_factory=lambda: ["NotStarted"])

    @property
    def compute(self) -> str:
        return (self.properties.get("computeId") or "").split("/")[-1]

    @property
    def nodes(self) -> int:
        return int((self.properties.get("resources") or {}).get("instanceCount") or 1)


@dataclass
class State:
    """All of it. `lock` guards it; `changed` wakes those who wait for the queue or for nodes.

    Args:
        root: The emulator's folder.
    """

    root: Path
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    jobs: dict[str, Job] = field(default_factory=dict)
    codes: dict[tuple[str, str], Code] = field(default_factory=dict)
    environments: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    planned_failures: list[dict[str, str]] = field(default_factory=list)
    queue_held: bool = False
    published_port: int | None = None
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    computes: dict[str, Compute] = field(
        default_factory=lambda: {
            "cpu-cluster": Compute("STANDARD_D2_V2", max_nodes=4),
            "gpu-cluster": Compute("STANDARD_NC6S_V3", max_nodes=2),
            "spot-cluster": Compute("STANDARD_D2_V2", max_nodes=4, priority="LowPriority"),
            "no-quota": Compute("STANDARD_ND96ASR_V4", max_nodes=4, quota=0),
            "my-instance": Compute("STANDARD_D2_V2", max_nodes=1, kind="ComputeInstance"),
        }
    )

    @property
    def blobs(self) -> Path:
        """Containers are folders below it, blobs are files."""
        return self.root / "blobs"

    def container(self, name: str) -> Path:
        return self.blobs / name

    def set_status(self, job: Job, status: str) -> None:
        """Moves a job on; one that has ended stays as it is, and one that is to be cancelled can only end."""
        with self.changed:
            if job.status in TERMINAL or (job.status == "CancelRequested" and status not in TERMINAL):
                return
            if job.status != status:
                job.history.append(status)
            job.status = status
            self.changed.notify_all()

    def ask_to_stop(self, job: Job, why: str) -> None:
        """Has a job's runner end it."""
        with self.changed:
            if job.status in TERMINAL:
                return
            if why == "cancel":
                self.set_status(job, "CancelRequested")
            if job.why != "cancel":
                job.why = why
            job.stop.set()
            self.changed.notify_all()

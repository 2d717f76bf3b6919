"""Ray on the nodes of an MPI job: rank 0 has its head, the others join and stay until the head's work is done.

Beside Ray the ranks have one word with each other, on the port after Ray's: a rank that has come is told when to join,
and when the work is done, or that it has been done already. Whoever loses the line without that word knows that the
head has died.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from plato_core.aml.jobrun import NOT_FOR_TRIALS
from plato_core.aml.jobsettings import NodeSettings, Rank
from plato_core.errors import AmlError
from plato_core.sweep.process import kill_session

JOIN, DONE = b"join\n", b"done\n"
_HEAD_WITHIN_S = 120.0
_ENDS_WITHIN_S = 10.0
_TICK_S = 0.5
_PARTING_S = 5.0
LATE_S = 30.0  # for which the head still tells a rank that comes late that the work is done


class RayNode:
    """Ray's processes on this node; use as a context manager.

    Args:
        arguments: Of `ray start`.
        environment: Of these processes, and so of everything that Ray starts here.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        # Its workers' ports are whatever is free, and so never the head's.
        ports = ["--min-worker-port=0", "--max-worker-port=0"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *ports, "--disable-usage-stats", "--block"]
        self._process = subprocess.Popen(
            [*command, *arguments], env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS_WITHIN_S)
        kill_session(self._process.pid)
        self._process.wait()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()


class Head:
    """Ray's head on rank 0, and the word to the other ranks; use as a context manager around the work.

    Args:
        job: What the job was told of its nodes.
        rank: Of this node.
        environment: Of Ray's processes.
        told_to_stop: Whether this process was told to end: then it waits for no rank that comes late.

    Attributes:
        address: Where Ray's head answers.
    """

    def __init__(
        self, job: NodeSettings, rank: Rank, environment: Mapping[str, str], told_to_stop: Callable[[], bool]
    ) -> None:
        self._job, self._own, self._environment = job, rank.own or rank.head, environment
        self._told_to_stop = told_to_stop
        self._lock, self._over, self._come = threading.Lock(), False, 0
        self.address = f"{self._own}:{job.ray_port}"
        self._ranks: list[socket.socket] = []
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Starts it.

        Raises:
            AmlError: It does not start.
        """
        own = self._own
        arguments = ["--head", f"--node-ip-address={own}", f"--port={self._job.ray_port}", "--include-dashboard=false"]
        with contextlib.ExitStack() as held:
            try:
                listening = held.enter_context(socket.create_server((own, self._job.ray_port + 1), backlog=128))
            except OSError as error:
                raise AmlError(f"rank 0 cannot listen at {own}:{self._job.ray_port + 1}: {error.strerror}") from None
            node = held.enter_context(
                RayNode([*arguments, *shlex.split(self._job.ray_head_arguments)], self._environment)
            )
            self._wait_until_it_answers(node)
            threading.Thread(target=self._welcome, args=(listening,), name="ranks", daemon=True).start()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tells the other ranks that the work is done, however it ended, also who comes late; and ends Ray here."""
        with self._lock:
            self._over = True
        deadline = time.monotonic() + _PARTING_S
        for connection in self._ranks:
            with contextlib.suppress(OSError):
                connection.sendall(DONE)
                connection.shutdown(socket.SHUT_WR)
        for connection in self._ranks:  # they end their part of Ray first, which else would miss its head
            with contextlib.suppress(OSError):
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                connection.recv(1)
            connection.close()
        deadline = time.monotonic() + LATE_S
        while self._come < self._job.nodes - 1 and not self._told_to_stop() and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        self._held.close()

    def _wait_until_it_answers(self, node: RayNode) -> None:
        deadline = time.monotonic() + _HEAD_WITHIN_S
        while not _answers(self._own, self._job.ray_port):
            if node.exit_code is not None:
                raise AmlError(f"Ray's head ended with exit code {node.exit_code}; its own lines are above")
            if time.monotonic() > deadline:
                raise AmlError(f"Ray's head does not answer at {self.address} within {_HEAD_WITHIN_S:g} s")
            time.sleep(_TICK_S)

    def _welcome(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            while True:
                connection, _ = listening.accept()
                _keep_alive(connection)
                with self._lock, contextlib.suppress(OSError):
                    connection.sendall(DONE if self._over else JOIN)
                    self._come += 1
                    if self._over:
                        connection.close()
                    else:
                        self._ranks.append(connection)


def follow(job: NodeSettings, rank: Rank, environment: Mapping[str, str], told_to_stop: Callable[[], bool]) -> bool:
    """Joins Ray's head as one of the other ranks, and stays until the work is done.

    Args:
        job: What the job was told of its nodes.
        rank: Of this node.
        environment: Of Ray's processes.
        told_to_stop: Whether this process was told to end.

    Returns:
        Whether the work is done; False where this process was told to stop.

    Raises:
        AmlError: No head came, it died, or Ray died here.
    """
    with contextlib.closing(_line_to_head(job, rank, told_to_stop)) as line:
        if (word := _heard(line, (DONE, JOIN), told_to_stop, None)) != JOIN:
            return word == DONE
        arguments = [f"--address={rank.head}:{job.ray_port}", *shlex.split(job.ray_worker_arguments)]
        if rank.own is not None:
            arguments.append(f"--node-ip-address={rank.own}")
        with RayNode(arguments, environment) as node:
            return _heard(line, (DONE,), told_to_stop, node) == DONE


def _line_to_head(job: NodeSettings, rank: Rank, told_to_stop: Callable[[], bool]) -> socket.socket:
    deadline = time.monotonic() + job.node_wait_s
    while True:
        try:
            line = socket.create_connection((rank.head, job.ray_port + 1), timeout=5.0)
        except OSError as error:
            if time.monotonic() > deadline or told_to_stop():
                raise AmlError(
                    f"rank {rank.number} found no head at {rank.head}:{job.ray_port + 1} within {job.node_wait_s:g} s "
                    f"({error.strerror or error}); look why rank 0 did not start"
                ) from None
            time.sleep(_TICK_S)
            continue
        _keep_alive(line)
        line.settimeout(_TICK_S)
        return line


def _heard(
    line: socket.socket, words: tuple[bytes, ...], told_to_stop: Callable[[], bool], node: RayNode | None
) -> bytes | None:
    """Return the first of the words that has come; None where this process was told to stop."""
    heard = b""
    while not told_to_stop():
        if node is not None and node.exit_code is not None:
            raise AmlError(f"Ray ended on this node with exit code {node.exit_code}; its own lines are above")
        try:
            more = line.recv(64)
        except TimeoutError:
            continue
        except OSError:
            more = b""
        if not more:
            raise AmlError("the head died: its node is gone, or its process was killed (out of memory, perhaps)")
        heard += more
        if (word := next((word for word in words if word in heard), None)) is not None:
            return word
    return None


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def _keep_alive(connection: socket.socket) -> None:
    """A node that vanishes sends no end; after 90 s of silence the line counts as lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):  # Linux's names
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def ray_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of Ray's processes: without Prefect's, and without the job's run in MLflow.

    Trials log nothing themselves, and what they inherited of the run would have them log into the parent's.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("PREFECT") and name not in (*NOT_FOR_TRIALS, "RAY_ADDRESS")
    }

"""A tracking server on loopback for a benchmark, and a way to it that takes time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil
from running import environment, last_line

# As `plato up` starts it. Otherwise it has eight more processes, for jobs that tracking has nothing to do with: they
# take 20 s of CPU after it has begun to answer.
_NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
# A server that is elsewhere takes no CPU from the sweep: such a one gets what the sweep leaves.
_ELSEWHERE = ["nice", "-n", "19"]


@contextlib.contextmanager
def mlflow_server(database: Path, artifacts: Path, *, workers: int = 1, elsewhere: bool = False) -> Iterator[str]:
    """Runs an MLflow server on loopback, and gives its address.

    Args:
        database: Its SQLite file.
        artifacts: Its folder of artifacts.
        workers: How many processes answer; MLflow's own default is 4.
        elsewhere: Whether it has the lowest priority.

    Raises:
        RuntimeError: It does not answer.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts)]
    command += ["--workers", str(workers)]
    log_file = database.with_name("server.log")
    command = [*_ELSEWHERE * elsewhere, *command]
    with log_file.open("ab") as log, _process(command, stdout=log, **_NO_JOBS) as process:
        deadline = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server does not answer: {last_line(log_file)}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def delayed(upstream: int, round_trip_s: float) -> Iterator[int]:
    """A way to a port of this machine that is longer by a round trip; yields the port to go in by.

    It delays bytes, each way by half, and does not hold back those that follow; a new connection takes one round trip
    more, as a TCP handshake does.
    """
    port = free_port()
    command = [*_ELSEWHERE, sys.executable, __file__, str(port), str(upstream), str(round_trip_s)]
    with _process(command, stdout=None) as process:
        while not _listens(port):
            if process.poll() is not None:
                raise RuntimeError("the proxy did not start")
            time.sleep(0.05)
        yield port


def cpu_s(uri: str) -> float:
    """Returns the CPU seconds that the server at an address has spent so far."""
    port = str(port_of(uri))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if {port, "server"} <= {*process.cmdline()}:  # the way there has the port in its command too
                family = [process, *process.children(recursive=True)]
                return sum(sum(each.cpu_times()[:2]) for each in family)
    return 0.0


def port_of(uri: str) -> int:
    """Returns the port of an address that ends with it."""
    return int(uri.rpartition(":")[2])


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _process(command: list[str], stdout: BinaryIO | None, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    known = environment() | variables
    process = subprocess.Popen(command, env=known, stdout=stdout, stderr=stdout, start_new_session=True)
    try:
        yield process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
                break


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except OSError:
        return False
    return True


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# ---- the proxy, as a program: PORT UPSTREAM ROUND_TRIP_S


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def read() -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                waiting.put_nowait((loop.time() + delay_s, data))
        waiting.put_nowait((loop.time() + delay_s, b""))

    reading = asyncio.create_task(read())
    with contextlib.suppress(OSError):
        while True:
            when, data = await waiting.get()
            await asyncio.sleep(max(0.0, when - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
    reading.cancel()
    writer.close()


async def _proxy(port: int, upstream: int, round_trip_s: float) -> None:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip_s)
        there, back = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(_pass(reader, back, round_trip_s / 2), _pass(there, writer, round_trip_s / 2))

    server = await asyncio.start_server(take, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_proxy(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

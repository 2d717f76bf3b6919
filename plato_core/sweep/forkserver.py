"""Processes for trials that have what takes longest to import before they begin: forks of one that imports it once.

torch and what RLlib needs beside it take some 3 s of CPU a process, and 130 MB that forks share. What a Ray that is
started takes for Python is a command of ours (`forkclient.py`), which has this server fork its workers. Ray takes its
job's id and settings from the environment when it is loaded, so nothing of it is imported here. For a Ray of this
machine, on Linux, without GPUs: CUDA does not outlive a fork either.

As a program, `python -m plato_core.sweep.forkserver DESCRIPTOR`, it is the server, on a socket that listens; it ends
with its standard input.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plato_core.sweep import forkclient

# What Ray, Tune, RLlib and an optimizer of torch import that is not of Ray; the largest first.
MODULES = (
    *("torch", "torch._dynamo", "gymnasium.wrappers", "pandas", "pyarrow.fs", "pydantic", "requests", "jsonschema"),
    *("google.protobuf.json_format", "google.protobuf.timestamp_pb2", "rich.console", "rich.pretty", "rich.table"),
    *("fsspec", "yaml", "absl.logging", "tree", "tqdm", "wcwidth", "filelock", "lz4.frame", "msgpack", "psutil"),
    *("cloudpickle", "packaging.version", "anyio", "starlette.types", "pdb", "importlib.metadata"),
)
_BACKLOG = 128


class ForkServer:
    """The server's process. It begins to import at once; whoever asks meanwhile waits.

    It ends with this process, or where nothing refers to this object any more.

    Args:
        folder: For its socket; a short path, since a socket's may have 107 characters.

    Attributes:
        process: The server.
    """

    def __init__(self, folder: Path) -> None:
        address, self._python = folder / "fork", folder / "python"
        # Without the site's packages it takes 20 ms to start.
        client = shlex.join([sys.executable, "-I", "-S", forkclient.__file__, str(address)])
        self._python.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
        self._python.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(address))
            listening.listen(_BACKLOG)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "plato_core.sweep.forkserver", str(listening.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
            )

    @contextlib.contextmanager
    def in_place_of_python(self) -> Iterator[None]:
        """While it lasts, a Ray that is started takes the command for Python.

        Ray's own setting for that, a runtime environment's `py_executable`, has every worker started by a Python that
        imports Ray (0.5 s of CPU), and makes the workers that Ray starts beforehand useless.
        """
        python, sys.executable = sys.executable, str(self._python)
        try:
            yield
        finally:
            sys.executable = python


def available(folder: Path) -> bool:
    """Returns whether processes may be forked on this machine, by a command in the folder."""
    if sys.platform != "linux" or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    return not any(Path(gpu).exists() for gpu in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def main() -> None:
    """Serves on the listening socket whose descriptor is the first argument."""
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collector that looks at what is shared would copy it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listening.accept()
            request, files = _receive(connection)
            if request is not None and os.fork() == 0:
                listening.close()
                _become(request, files, connection)
            for file in files:
                os.close(file)
            connection.close()


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Returns what a client asks for, and its standard streams; None from one that is gone."""
    files = array.array("i")
    text = b""
    with contextlib.suppress(OSError):
        connection.settimeout(10.0)
        while not text.endswith(b"\n"):
            part, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(3 * files.itemsize))
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    files.frombytes(data)
            if not part:
                return None, list(files)
            text += part
    return (json.loads(text) if text.endswith(b"\n") else None), list(files)


def _become(request: dict[str, Any], files: list[int], connection: socket.socket) -> None:
    """Makes this process what the client asked for; its connection stays open for as long as it lives."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        connection.send(b"+")
        with contextlib.suppress(OSError):
            os.setpgid(0, request["group"])  # Ray ends a worker's whole group
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin = open(0)  # noqa: SIM115
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = request["arguments"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

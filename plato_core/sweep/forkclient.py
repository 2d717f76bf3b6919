"""Stands in for Python where Ray starts its processes: has `forkserver.py` fork a worker, and ends when that does.

As a program, `python -I -S forkclient.py SOCKET [OPTION...] SCRIPT ARGUMENT...`; it has the standard library alone.
For anything else than a worker, and where no server answers, it becomes the Python that it stands in for.
"""

import json
import os
import socket
import sys

# The server may be importing still, on a busy machine.
_TIMEOUT_S = 60.0
_WORKER = "default_worker.py"


def main() -> None:
    """Asks the server for a fork if that is what Ray wants, and waits for its end; else becomes Python."""
    address, *command = sys.argv[1:]
    at = next((i for i, word in enumerate(command) if not word.startswith("-")), len(command))
    if at < len(command) and os.path.basename(command[at]) == _WORKER and _forked(address, command[at:]):
        return
    os.execv(sys.executable, [sys.executable, *command])


def _forked(address: str, arguments: list[str]) -> bool:
    """Returns whether the server forked a worker, which has then ended."""
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "group": os.getpgid(0),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(address)
            text = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [text], [0, 1, 2])
            connection.sendall(text[sent:])
            began = connection.recv(1)
        except OSError:
            began = b""
        if began:
            connection.settimeout(None)
            connection.recv(1)  # there is nothing more: it ends when the worker has
    return bool(began)


if __name__ == "__main__":
    main()

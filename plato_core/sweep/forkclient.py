"""Stands in for Python where Ray starts a worker: has `forkserver.py` fork one, and ends when that does.

As a program, `python -I -S forkclient.py SOCKET [OPTION...] SCRIPT ARGUMENT...`; it has the standard library alone.
Where no server answers, it becomes the Python that it stands in for.
"""

import json
import os
import socket
import sys

# The server may be importing still, on a busy machine.
_TIMEOUT_S = 60.0


def main() -> None:
    """Asks the server for a fork and waits for its end."""
    address, *command = sys.argv[1:]
    arguments = command[next(i for i, word in enumerate(command) if not word.startswith("-")) :]
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
            return
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()

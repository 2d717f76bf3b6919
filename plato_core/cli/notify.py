"""`plato notify`: have a webhook called when a sweep ends."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def notify(*, on: str = "failed,completed", off: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Have the Prefect server at PREFECT_API_URL call a webhook when a run of the flow `sweep` ends.

    The webhook's address is asked for, or read from standard input: it is as good as a password, so it is no flag.
    The server keeps it in the block plato-notify. Run it in the project's folder: what is sent stands in
    deployments/automations/notify.yaml there. A second time it replaces the address and the automations.

    Parameters
    ----------
    on
        At which ends: failed, completed, or both, with a comma between.
    off
        Remove the automations and the address from the server.
    """
    from plato_core import notify as notifying

    folder = Path.cwd()
    if off:
        print(f"no webhook is called any more: {notifying.stop(folder)} automations removed")
        return 0
    ends = [end.strip() for end in on.split(",") if end.strip()]
    notifying.notify(folder, _ask_url, ends)
    print(f"the webhook is called when a sweep has {' or '.join(ends)}")
    return 0


def _ask_url() -> str:
    asked = getpass.getpass("address of the webhook: ") if sys.stdin.isatty() else sys.stdin.readline()
    return asked.strip()

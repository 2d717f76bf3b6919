"""A Prefect database made beforehand, to be copied to where a new one is needed.

Prefect brings a new SQLite database up to date by all of the migrations that it ever had, some 5 s of CPU, in which the
first run in each new `PREFECT_HOME` would wait. `make setup` runs them once: `python -m plato_core.prefect_database`.
Where that was not done, or for another version of Prefect, Prefect makes its database as it always did.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

NAME = "prefect.db"  # in PREFECT_HOME


def made_beforehand() -> Path:
    """Returns where the database for this version of Prefect is kept, made or not: in the Python environment."""
    return Path(sys.prefix) / "share" / "plato" / f"prefect-{version('prefect')}.db"


def put_in_place(home: Path) -> None:
    """Gives a `PREFECT_HOME` without a database the one made beforehand, if there is one.

    Args:
        home: The folder; made if it is missing. A database that is there is left alone.
    """
    source, target = made_beforehand(), home / NAME
    if target.exists() or not source.exists():
        return
    with contextlib.suppress(OSError):  # Prefect then makes its own, or says what is wrong with the folder
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".database-", dir=home) as folder:
            copy = Path(folder) / NAME
            shutil.copyfile(source, copy)
            os.link(copy, target)  # whole, or not at all, and never over another's


def make() -> None:
    """Makes it, by Prefect's own command.

    Raises:
        CalledProcessError: Prefect cannot.
    """
    target = made_beforehand()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prefect-", dir=target.parent) as home:
        # Nothing of the user's own: another database, a profile that names one, a server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {"PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(command, cwd=home, env=environment, stdout=subprocess.DEVNULL, check=True)
        (Path(home) / NAME).rename(target)


if __name__ == "__main__":
    make()

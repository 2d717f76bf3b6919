"""Making MLflow's SQLite database whole or not at all.

MLflow makes the tables of a new database in dozens of steps, some seconds in all. Cut short there (Ctrl-C, `kill -9`,
the machine going down) it leaves a database that it can neither use nor mend: every later start fails with "table
experiments already exists".
"""

import fcntl
import os
from pathlib import Path

SQLITE = "sqlite:///"


def make_database(path: Path) -> None:
    """Make MLflow's database at `path` unless something is there; it gets its name when it is complete.

    One process makes it, others wait. What one that was killed has left is made anew by the next.

    Args:
        path: An absolute path in a folder that exists.

    Raises:
        OSError: There is no room, or no permission.
        MlflowException: As MLflow has it.
    """
    if path.exists():
        return
    new = path.with_name(f".{path.name}.new")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists():
            return
        _remove(new)
        try:
            _make(new)
            new.rename(path)
        except BaseException:
            _remove(new)
            raise
    finally:
        os.close(folder)


def _make(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # The second argument is what a client names for a database without a server.
    SqlAlchemyStore(f"{SQLITE}{path}", "./mlruns").engine.dispose()


def _remove(new: Path) -> None:
    for path in (new, new.with_name(f"{new.name}-journal")):
        path.unlink(missing_ok=True)

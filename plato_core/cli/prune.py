"""`plato prune`: remove the files of old sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

DEFAULT_FOLDER = Path(".plato/sweeps")


def prune(
    folder: Path = DEFAULT_FOLDER,
    /,
    *,
    older_than_days: float | None = None,
    keep: int | None = None,
    unsent: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Remove the files of old sweeps: their logs, Tune's files and the trials' checkpoints on this disk.

    What is in MLflow and in model_checkpoints stays. A sweep goes when it is beyond either limit; one that never
    finished, only by its age. One that runs stays, and one with results that `plato flush` would still send.

    Parameters
    ----------
    folder
        Folder of the sweeps, their --storage-path.
    older_than_days
        Sweeps that ended longer ago go.
    keep
        All but so many of the newest finished sweeps go.
    unsent
        Also those with results that are still to be sent; they are lost then.
    dry_run
        Only say what would go.
    json
        Say it as one JSON object.
    """
    from plato_core.prune import prune as prune_sweeps

    pruned = prune_sweeps(folder, older_than_days=older_than_days, keep=keep, unsent=unsent, dry_run=dry_run)
    print(pruned.model_dump_json() if json else pruned.describe())
    return 1 if pruned.failed else 0

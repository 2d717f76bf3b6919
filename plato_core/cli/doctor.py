"""`plato doctor`: what became of the sweeps of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plato_core.cli.prune import DEFAULT_FOLDER


def doctor(
    *,
    storage_path: Path = DEFAULT_FOLDER,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """List the sweeps that can be resumed, and close the MLflow runs of those that died.

    A sweep whose processes were killed leaves its runs RUNNING in MLflow. They become KILLED here, as at the start of
    the next sweep; the sweep can be resumed all the same.

    Parameters
    ----------
    storage_path
        Folder of the sweeps.
    json
        Say it as one JSON object.
    """
    from plato_core.doctor import examine

    checkup = examine(storage_path)
    print(checkup.model_dump_json() if json else checkup.describe())
    return 0 if checkup.all_well else 1

"""The files that Tune and the trainable write about a trial, wherever they are."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import ray

from plato_core.training.failures import failure_line

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

_FAILURE = re.compile(r"^Failure # \d+ \(occurred at .*\)\n", re.MULTILINE)


def trial_files(trial: "Trial") -> dict[str, Path]:
    """Where the artifacts of a trial are, by the names they get in the store.

    Those that do not exist are left out. Tune writes on the driver, into a staging folder that is copied to the storage
    path now and then; the logs are in the storage path from the first line on, and the trainable's own files are in
    its working folder or, once copied, in the storage path.
    """
    return files_in(_folders(trial))


def files_in(folders: Sequence[Path]) -> dict[str, Path]:
    """Where the artifacts of a trial are in some folders, the first that has one; see `trial_files`."""
    wanted = {
        "params.json": ("algorithm_config.json", "params.json"),
        "progress.csv": ("progress.csv",),
        "result.json": ("result.json",),
    }
    found: dict[str, Path] = {}
    for artifact, names in wanted.items():
        places = [folder / name for name in names for folder in folders]
        existing = next((place for place in places if place.is_file()), None)
        if existing is not None:
            found[artifact] = existing
    return found


def error_line(trial: "Trial") -> str | None:
    """What the trial failed with last, in one line; None when it has not."""
    name = cast("str | None", trial.run_metadata.error_filename)  # Ray annotates it as always None
    if not name:
        return None
    path = next((folder / name for folder in _folders(trial) if (folder / name).exists()), None)
    if path is None:
        return None
    # Tune adds each failure below those before.
    return failure_line(_FAILURE.split(path.read_text(errors="replace"))[-1])


def _folders(trial: "Trial") -> list[Path]:
    storage = trial.storage
    if storage is None or storage.trial_dir_name is None:  # it failed before it had a folder
        return []
    folders = [storage.trial_fs_path]
    if ray.is_initialized():  # the others are in the session's folder, which Ray names only while it is up
        folders = [storage.trial_driver_staging_path, storage.trial_working_directory, *folders]
    return [Path(folder) for folder in folders]

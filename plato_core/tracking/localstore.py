"""Files into and out of a store that is a folder of this machine.

MLflow's own way there checks each path several times over, half a millisecond a file: of a checkpoint of 2000 small
files that was nine tenths of the time. The paths here are a manifest's, which are checked when it is made or read.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

_AT_ONCE = 2**17


def folder_of(repository: "ArtifactRepository") -> Path | None:
    """Return the folder that a store of artifacts is; None if it is somewhere else."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    return Path(repository.artifact_dir) if isinstance(repository, LocalArtifactRepository) else None


def put_files(source: Path, target: Path, paths: Iterable[str]) -> None:
    """Copy files to the same paths below another folder.

    What stands there already is replaced by a rename, so that it is whole at all times; a new file is not.

    Args:
        source: The folder of the files.
        target: The other one; made if it does not exist.
        paths: Plain relative ones.

    Raises:
        FileNotFoundError: One is missing.
    """
    made: set[str] = set()
    for path in paths:
        destination = f"{target}/{path}"
        folder = os.path.dirname(destination)
        if folder not in made:
            os.makedirs(folder, exist_ok=True)
            made.add(folder)
        try:
            _copy(f"{source}/{path}", destination)
        except FileExistsError:
            with tempfile.TemporaryDirectory(prefix=".plato-", dir=folder) as beside:
                partial = f"{beside}/partial"
                _copy(f"{source}/{path}", partial)
                os.replace(partial, destination)


def get_files(source: Path, target: Path, paths: Iterable[str]) -> None:
    """Copy those files that exist, as `put_files` does."""
    put_files(source, target, [path for path in paths if _is_file(f"{source}/{path}")])


def _copy(source: str, target: str) -> None:
    """Copy a file to a new one.

    Raises:
        FileExistsError: There is one.
    """
    with open(source, "rb", buffering=0) as here, open(target, "xb", buffering=0) as there:
        data = here.read(_AT_ONCE)
        if len(data) < _AT_ONCE:
            _write(there.fileno(), data)
            return
    shutil.copyfile(source, target)  # in the kernel


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False

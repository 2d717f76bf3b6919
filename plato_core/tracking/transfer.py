"""Checkpoints on their way to the tracking store and back, each file checked against the manifest."""

import contextlib
import itertools
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import stamina

from plato_core.errors import CheckpointError, ConfigError, TrackingError
from plato_core.manifest import (
    MANIFEST_NAME,
    Manifest,
    checkpoint_name,
    differences,
    read_manifest,
    store_manifest,
    verify,
)
from plato_core.tracking.artifacts import (
    artifact_repository,
    checkpoint_folders,
    checkpoint_in,
    is_absent,
    is_taken,
    is_transient,
)
from plato_core.tracking.client import redact
from plato_core.tracking.localstore import folder_of, get_files, put_files
from plato_core.tracking.serverstore import DOWNLOADS, PARALLEL, ServerStore
from plato_core.tracking.staging import staging_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository


@dataclass(frozen=True)
class DownloadedCheckpoint:
    """A verified checkpoint on this machine.

    Attributes:
        path: Its folder, `<local_path>/<run_id>/checkpoint_NNNNNN`.
        manifest: What it was verified against.
        reused: It stood there already and verified, so nothing was downloaded.
        replaced: Where a folder that stood there and did not verify was moved; None if there was none.
    """

    path: Path
    manifest: Manifest
    reused: bool = False
    replaced: Path | None = None


def upload_checkpoint(
    client: "MlflowClient", run_id: str, directory: str | os.PathLike[str], manifest: Manifest
) -> int:
    """Upload the files that `manifest` names from `directory`, and then the manifest.

    They land under the artifact path `checkpoint_NNNNNN` of the run. Calling it again after a failure
    writes the same files to the same place; in a store that takes each path once, to a folder of another name,
    unless the checkpoint is whole there. Transient errors of the store are retried for a short while.

    Args:
        client: Of the tracking store.
        run_id: The trial's run.
        directory: The checkpoint's folder. Other files in it stay where they are.
        manifest: Names the files; it is written from this object, not read from `directory`.

    Returns:
        The bytes uploaded, the manifest's own included.

    Raises:
        CheckpointError: `directory` lacks a file of the manifest.
        Exception: What the store raised (`mlflow.exceptions.MlflowException` for most), as it was, so that
            the caller can tell with `is_transient` whether to try again later.
    """
    repository = artifact_repository(client, run_id)
    for folder in checkpoint_folders(checkpoint_name(manifest.iteration)):
        try:
            return _upload(repository, Path(directory), folder, manifest)
        except Exception as error:
            if not is_taken(error):
                raise
            if stored_manifest(repository, folder) == manifest:
                return manifest.size
    raise TrackingError(f"the store refuses checkpoint {manifest.iteration} of run {run_id} under each name as taken")


def _upload(repository: "ArtifactRepository", source: Path, target: str, manifest: Manifest) -> int:
    local, server = folder_of(repository), ServerStore.of(repository)

    @stamina.retry(on=is_transient, attempts=3, timeout=30.0)
    def put(path: str) -> None:
        if server is not None:
            server.put(source / path, posixpath.join(target, path))
        else:
            repository.log_artifact(str(source / path), posixpath.join(target, posixpath.dirname(path)).rstrip("/"))

    try:
        if local is not None:
            put_files(source, local / target, manifest.files)
        else:
            _each(put, list(manifest.files), PARALLEL)
    except FileNotFoundError as exc:
        lacking = [path for path in manifest.files if not (source / path).exists()]
        if not lacking:  # it is the store's own folder that is away
            raise
        raise CheckpointError(f"The checkpoint in {source} lacks {', '.join(lacking[:3])}.") from exc
    with tempfile.TemporaryDirectory(prefix="plato-manifest-") as folder:
        written = store_manifest(Path(folder), manifest)
        size = written.stat().st_size
        for attempt in stamina.retry_context(on=is_transient, attempts=3, timeout=30.0):
            with attempt:
                repository.log_artifact(str(written), target)
    return manifest.size + size


@stamina.retry(on=is_transient, attempts=4, timeout=60.0)
def stored_manifest(repository: "ArtifactRepository", folder: str) -> Manifest | None:
    """Return the manifest of the checkpoint in an artifact folder; None if it has none that can be read.

    Raises:
        Exception: What the store raised, if it did not answer.
    """
    wanted = f"{folder}/{MANIFEST_NAME}"
    if wanted not in {info.path for info in repository.list_artifacts(folder)}:
        return None
    with tempfile.TemporaryDirectory(prefix="plato-manifest-") as local:
        try:
            repository._download_file(wanted, str(Path(local, MANIFEST_NAME)))  # it is a file: the listing said so
            return read_manifest(Path(local))
        except CheckpointError:
            return None
        except Exception as error:
            # A deleted file and a store that is away look alike here; the folder's listing tells them apart.
            if is_absent(error) or wanted not in {info.path for info in repository.list_artifacts(folder)}:
                return None
            raise


def download_checkpoint(
    client: "MlflowClient",
    run_id: str,
    checkpoint: int | str,
    local_path: str | os.PathLike[str],
    manifest: Manifest,
) -> DownloadedCheckpoint:
    """Download a checkpoint to `<local_path>/<run_id>/checkpoint_NNNNNN` and verify every file of it.

    It is gathered in a temporary folder beside its place and put there by one rename, so that what
    stands under that name is whole. One that stands there already is used again if it verifies, and is
    moved aside if it does not. Nothing else in `local_path` is touched, except what downloads that were
    killed have left.

    Args:
        client: Of the tracking store.
        run_id: The run that the checkpoint belongs to.
        checkpoint: Its iteration, or its artifact path.
        local_path: A folder of results; made if it does not exist.
        manifest: The checkpoint's manifest; files that it does not name are not kept.

    Raises:
        ConfigError: `local_path` is a file, or cannot be written.
        CheckpointError: A file is missing in the store or differs from the manifest.
        TrackingError: The store did not answer, several times over.
    """
    artifact_path = checkpoint_name(checkpoint) if isinstance(checkpoint, int) else checkpoint
    target = Path(local_path).absolute() / run_id / (checkpoint_in(artifact_path) or posixpath.basename(artifact_path))
    try:
        if _is_whole(target, manifest):
            return DownloadedCheckpoint(target, manifest, reused=True)
        with _made(target.parent), staging_folder(target.parent) as staging:
            _require_space(staging, manifest)
            _gather(client, run_id, artifact_path, staging, manifest)
            gathered = staging / artifact_path
            _keep_only(gathered, manifest)
            store_manifest(gathered, manifest)
            return _put_in_place(gathered, target, manifest)
    except (FileExistsError, NotADirectoryError) as exc:
        in_the_way = next(path for path in (target.parent, *target.parents) if path.exists())
        raise ConfigError(
            f"The local path {str(local_path)!r} cannot hold checkpoints: {in_the_way} is a file. Name a folder."
        ) from exc
    except OSError as exc:
        raise ConfigError(f"The local path {str(local_path)!r} cannot be written: {exc}. Name another folder.") from exc


def _require_space(folder: Path, manifest: Manifest) -> None:
    free = shutil.disk_usage(folder).free
    if free < manifest.size:
        raise ConfigError(
            f"{folder.parent} has {free / 1e6:.0f} MB left and the checkpoint needs "
            f"{manifest.size / 1e6:.0f} MB. Make room, or name a local path on another disk."
        )


def _each(action: Callable[[str], None], items: list[str], workers: int) -> None:
    """Call `action` with each item; at the first error, start no more and raise it."""
    pool = ThreadPoolExecutor(max(1, min(workers, len(items))), thread_name_prefix="plato-transfer")
    try:
        for _ in pool.map(action, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _gather(client: "MlflowClient", run_id: str, artifact_path: str, staging: Path, manifest: Manifest) -> None:
    """Download the checkpoint into `staging`, and raise unless every file is as the manifest says."""
    gathered = staging / artifact_path
    try:
        repository = artifact_repository(client, run_id)
        if (local := folder_of(repository)) is not None:
            get_files(local / artifact_path, gathered, manifest.files)
        for attempt in () if local is not None else stamina.retry_context(on=is_transient, attempts=4, timeout=120.0):
            with attempt:
                if (server := ServerStore.of(repository)) is not None:
                    _fetch(server, artifact_path, gathered, manifest)
                elif gathered.exists():  # an earlier attempt got some of them
                    for path in differences(gathered, manifest):
                        repository.download_artifacts(posixpath.join(artifact_path, path), str(staging))
                elif repository.list_artifacts(artifact_path):
                    # One request a folder to list it, then its files side by side; asked for file by
                    # file, MLflow lists each of them as well.
                    repository.download_artifacts(artifact_path, str(staging))
    except Exception as exc:
        raise TrackingError(
            f"{artifact_path} of run {run_id} cannot be downloaded from {redact(client.tracking_uri)}: {exc}"
        ) from exc
    if problems := verify(gathered, manifest):
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise CheckpointError(
            f"{artifact_path} of run {run_id} does not match its manifest: {shown}. Nothing of it was kept."
        )


def _fetch(server: ServerStore, artifact_path: str, gathered: Path, manifest: Manifest) -> None:
    """Download what is lacking of the files of a manifest."""
    lacking = differences(gathered, manifest) if gathered.exists() else list(manifest.files)
    paths = server.among(artifact_path, lacking)
    for folder in {posixpath.dirname(path) for path in paths}:
        (gathered / folder).mkdir(parents=True, exist_ok=True)
    _each(lambda path: server.get(posixpath.join(artifact_path, path), gathered / path), paths, DOWNLOADS)


def _is_whole(target: Path, manifest: Manifest) -> bool:
    try:
        return target.is_dir() and read_manifest(target) == manifest and not differences(target, manifest)
    except CheckpointError:
        return False


def _keep_only(folder: Path, manifest: Manifest) -> None:
    """Remove what the manifest does not name, since nothing says that it is what it was."""
    root = str(folder)
    for parent, folders, names in os.walk(root, topdown=False):
        inside = parent[len(root) + 1 :]
        for name in names:
            if (f"{inside}/{name}" if inside else name) not in manifest.files:
                os.unlink(f"{parent}/{name}")
        for name in folders:
            path = f"{parent}/{name}"
            if os.path.islink(path):
                os.unlink(path)
            elif not os.listdir(path):
                os.rmdir(path)


def _put_in_place(gathered: Path, target: Path, manifest: Manifest) -> DownloadedCheckpoint:
    replaced = None
    for _ in range(5):
        if os.path.lexists(target):
            if _is_whole(target, manifest):  # another download of it was faster
                return DownloadedCheckpoint(target, manifest, reused=True, replaced=replaced)
            replaced = _move_aside(target) or replaced
        with contextlib.suppress(OSError):
            os.rename(gathered, target)
            return DownloadedCheckpoint(target, manifest, replaced=replaced)
    raise CheckpointError(f"The checkpoint cannot be put at {target}: something else writes there.")


def _move_aside(target: Path) -> Path | None:
    """Rename `target` to a free name with the time in it; None if another download has done so already."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (f"{target.name}.replaced-{stamp}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
    aside = next(path for name in names if not os.path.lexists(path := target.with_name(name)))
    try:
        os.rename(target, aside)
    except FileNotFoundError:
        return None
    return aside


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make `folder` and its parents; if the block fails, remove those that it made and that are empty."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), [folder, *folder.parents]))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise

"""The manifest of a checkpoint: which files belong to it, their digests, and where it came from.

A checkpoint is a folder of files plus `manifest.json`. The manifest is written last, on disk and in the
tracking store alike, so that its presence says the checkpoint is complete.
"""

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from plato_core.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
# Beside RLlib's files in a checkpoint: whose it is, that trial's own counters, and the policy's last episodes.
TRIAL_STATE_NAME = "trial.json"
_TEMPORARY = f".{MANIFEST_NAME}."
_SMALL = 2**17


def _relative(path: str) -> str:
    """Refuse a path that is not a plain relative one, because files are read and written by it."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or str(pure) != path:
        raise ValueError(f"{path!r} is not a plain path inside the checkpoint")
    if path in (".", MANIFEST_NAME):
        raise ValueError(f"{path!r} cannot be one of a checkpoint's files")
    return path


def _finite(score: Any) -> Any:
    return None if isinstance(score, float) and not math.isfinite(score) else score


def _plain(value: Any) -> Any:
    """Return `value` in types that JSON has; NumPy's and torch's scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return _plain(value.item()) if hasattr(value, "item") else str(value)


class FileEntry(BaseModel):
    """One file of a checkpoint: its sha256 (64 hexadecimal digits) and its size in bytes."""

    model_config = ConfigDict(frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """What a checkpoint consists of and where it came from.

    Attributes:
        version: Of this format.
        sweep_id: The sweep that wrote it.
        trial_id: The Tune trial that wrote it.
        trial_name: That trial's name, as its MLflow run is named.
        iteration: The trial's own iteration count when it was written.
        metric: The metric that `score` is a value of.
        mode: Whether a high (`max`) or a low (`min`) score is good; None where the writer did not say.
        score: The metric's value at that iteration; None if it was unknown, never NaN or infinite.
        hyperparameters: Canonical name to value, as they were when it was written.
        versions: Library name to version.
        created: When it was written, ISO 8601 in UTC.
        files: POSIX path relative to the checkpoint's folder, to that file's digest and size.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    sweep_id: str
    trial_id: str
    trial_name: str
    iteration: Annotated[int, Field(ge=0)]
    metric: str
    mode: Literal["max", "min"] | None = None
    score: Annotated[float | None, BeforeValidator(_finite)]
    hyperparameters: Annotated[dict[str, Any], BeforeValidator(_plain)]
    versions: dict[str, str]
    created: str
    files: dict[Annotated[str, AfterValidator(_relative)], FileEntry]

    @property
    def size(self) -> int:
        """Bytes of all files together, the manifest itself not counted."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> str:
        """Return the text of `manifest.json`, the same for equal manifests."""
        return self.model_dump_json(indent=2) + "\n"


def checkpoint_name(iteration: int) -> str:
    """Return the name of the checkpoint of a trial's own `iteration`: `checkpoint_000012`."""
    return f"checkpoint_{iteration:06d}"


def write_manifest(
    directory: str | os.PathLike[str],
    *,
    sweep_id: str,
    trial_id: str,
    trial_name: str,
    iteration: int,
    metric: str,
    score: float | None,
    hyperparameters: Mapping[str, Any],
    versions: Mapping[str, str],
    mode: Literal["max", "min"] | None = None,
) -> Manifest:
    """Hash every regular file below `directory` and write `manifest.json` there, whole or not at all.

    Args:
        directory: The checkpoint's folder, complete but for its manifest.
        sweep_id: See `Manifest`, as for the rest.
        trial_id: The Tune trial.
        trial_name: Its name.
        iteration: The trial's own count.
        metric: The metric that `score` is a value of.
        score: None, NaN or infinite where it is unknown; the manifest then holds None.
        hyperparameters: Canonical name to value.
        versions: Library name to version.
        mode: Whether a high or a low score is good.

    Raises:
        CheckpointError: `directory` is missing, or a file in it cannot be read.
    """
    root = Path(directory)
    try:
        files = {path: FileEntry(sha256=digest(f"{root}/{path}"), size=size) for path, size in _walk(root)}
        manifest = Manifest(
            sweep_id=sweep_id,
            trial_id=trial_id,
            trial_name=trial_name,
            iteration=iteration,
            metric=metric,
            mode=mode,
            score=score,
            hyperparameters=dict(hyperparameters),
            versions=dict(versions),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=files,
        )
        store_manifest(root, manifest)
    except (OSError, ValidationError) as exc:
        raise CheckpointError(f"The checkpoint in {root} cannot be described: {exc}.") from exc
    return manifest


def store_manifest(directory: Path, manifest: Manifest) -> Path:
    """Write `manifest` as `manifest.json` in `directory` by one rename, and return its path."""
    target = directory / MANIFEST_NAME
    temporary = directory / f"{_TEMPORARY}{os.getpid()}"
    temporary.write_text(manifest.to_json(), encoding="utf-8")
    os.replace(temporary, target)
    return target


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of the checkpoint in `directory`.

    Raises:
        CheckpointError: There is none, or it is damaged, or one of its paths leads out of the folder.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise CheckpointError(f"There is no {MANIFEST_NAME} in {directory}: the checkpoint is not complete.") from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc}.") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{path} is not a valid manifest: {f'{where}: ' if where else ''}{first['msg']}."
        ) from exc


def verify(directory: str | os.PathLike[str], manifest: Manifest) -> list[str]:
    """Compare the files in `directory` with `manifest`, and describe each that differs in a line.

    Files that the manifest does not name are left out of account.
    """
    return [f"{path}: {problem}" for path, problem in differences(directory, manifest).items()]


def differences(directory: str | os.PathLike[str], manifest: Manifest) -> dict[str, str]:
    """Return what is wrong with each file that is missing, of another size or of another digest, by path."""
    root = os.fspath(directory)
    wrong = {}
    for path, entry in manifest.files.items():
        file = f"{root}/{path}"
        try:
            found = os.stat(file)
            if not stat.S_ISREG(found.st_mode):
                wrong[path] = "not a regular file"
            elif found.st_size != entry.size:
                wrong[path] = f"expected {entry.size} bytes, found {found.st_size}"
            elif (actual := digest(file)) != entry.sha256:
                wrong[path] = f"expected sha256 {entry.sha256}, found {actual}"
        except (FileNotFoundError, NotADirectoryError):
            wrong[path] = "missing"
        except OSError as exc:
            wrong[path] = f"cannot be read ({exc.strerror})"
    return wrong


def digest(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with open(path, "rb", buffering=0) as file:
        data = file.read(_SMALL)
        if len(data) < _SMALL:  # without the large buffer that the other way fills with zeros first
            return hashlib.sha256(data).hexdigest()
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(root: Path) -> list[tuple[str, int]]:
    """Return the relative POSIX path and the size of each regular file below `root`, in order of the path."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    top = str(root)
    for folder, _, names in os.walk(top, onerror=fail):
        inside = folder[len(top) + 1 :]
        for name in names:
            status = os.stat(f"{folder}/{name}")
            relative = f"{inside}/{name}" if inside else name
            ours = relative == MANIFEST_NAME or relative.startswith(_TEMPORARY)
            if stat.S_ISREG(status.st_mode) and not ours:
                found.append((relative, status.st_size))
    return sorted(found)

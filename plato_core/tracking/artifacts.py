"""The artifacts of a run: where they are, and how one gets there in a store that takes each path only once.

Azure ML refuses a path that it has heard of before, also if what it was announced for never arrived. What is to be
stored again goes under another name there: `summary-2.md`, `upload-2_checkpoint_000012`. The highest number is the
newest. Other stores overwrite, and know none of these names.
"""

import functools
import posixpath
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import stamina

from plato_core.errors import TrackingError
from plato_core.manifest import digest
from plato_core.tracking import azure
from plato_core.tracking.client import redact
from plato_core.tracking.hold import hold_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

# A store that calls more names than this taken means something else by it.
_MOST_NAMES = 50
_CHECKPOINT = re.compile(r"(?:upload-(\d+)_)?(checkpoint_\d{6,})")


def is_transient(error: Exception) -> bool:
    """Say whether the same request may succeed a little later: no connection, HTTP 408, 429 or 5xx."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.HTTPError):
        status = error.response.status_code if error.response is not None else None
    else:
        status = getattr(error, "status_code", None)  # azure.core's errors
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    kinds = (
        *(ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout),
        # An answer that ended too soon, and one of the statuses above several times over.
        *(requests.exceptions.ChunkedEncodingError, requests.exceptions.RetryError),
    )
    # azure.core has its own for a connection that failed; those for time-outs and broken answers derive from them.
    azure_kinds = {"ServiceRequestError", "ServiceResponseError", "IncompleteReadError"}
    return isinstance(error, kinds) or not azure_kinds.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def is_taken(error: Exception) -> bool:
    """Say whether a store refused a path because it has had it before."""
    text = str(error)
    return "Resource Conflict" in text or "BlobAlreadyExists" in text


def is_absent(error: Exception) -> bool:
    """Say whether an artifact was announced and never arrived, by what Azure says when it is asked for."""
    text = str(error)
    return "BlobNotFound" in text or "blob does not exist" in text or "was not found" in text


@functools.lru_cache(maxsize=512)
@stamina.retry(on=is_transient, attempts=3, timeout=30.0)
def _artifact_uri(client: "MlflowClient", run_id: str) -> str:
    uri = client.get_run(run_id).info.artifact_uri
    if uri is None:
        raise TrackingError(f"Run {run_id} in {redact(client.tracking_uri)} has no place for artifacts.")
    return uri


def artifact_repository(client: "MlflowClient", run_id: str) -> "ArtifactRepository":
    """Return where the artifacts of a run are, asking the store for the place once a run.

    Unlike the client's own methods it lets an error of the artifact store through as it was.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = _artifact_uri(client, run_id)
    if not azure.is_azure(uri):
        return get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    with azure.in_force(client.tracking_uri):
        repository = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    azure.renew_transfers(repository, client.tracking_uri)
    return repository


def put_file(client: "MlflowClient", run_id: str, source: Path) -> str:
    """Store a file among a run's artifacts, under its own name or, where that is taken, the next that is free.

    What stands there already with the same content counts as stored.

    Returns:
        The artifact's path.

    Raises:
        Exception: What the store raised, as it was; see `is_transient`.
    """
    repository = artifact_repository(client, run_id)
    with tempfile.TemporaryDirectory(prefix="plato-artifact-") as folder:
        for number in range(1, _MOST_NAMES + 1):
            name = source.name if number == 1 else f"{source.stem}-{number}{source.suffix}"
            local = source
            if number > 1:
                hold_file(source, local := Path(folder, name))
            try:
                repository.log_artifact(str(local))
            except Exception as error:
                if not is_taken(error):
                    raise
                if not _holds(repository, name, source):
                    continue
            return name
    raise TrackingError(f"the store refuses {source.name} in run {run_id} under {_MOST_NAMES} names as taken")


def put_text(client: "MlflowClient", run_id: str, text: str, name: str) -> str:
    """Store a text like a file; see `put_file`."""
    with tempfile.TemporaryDirectory(prefix="plato-artifact-") as folder:
        file = Path(folder, name)
        file.write_text(text, encoding="utf-8")
        return put_file(client, run_id, file)


def checkpoint_folders(name: str) -> Iterator[str]:
    """Yield the artifact paths that a checkpoint may have, in the order in which they are tried."""
    yield name
    for number in range(2, _MOST_NAMES + 1):
        # In front, as the plugin lists by how a path begins.
        yield f"upload-{number}_{name}"


def checkpoint_in(path: str) -> str | None:
    """Return which checkpoint, `checkpoint_NNNNNN`, an artifact path is one of; None if of none."""
    found = _CHECKPOINT.fullmatch(posixpath.basename(path))
    return found.group(2) if found else None


def _holds(repository: "ArtifactRepository", path: str, source: Path) -> bool:
    """Say whether an artifact has the content of a file."""
    with tempfile.TemporaryDirectory(prefix="plato-artifact-") as folder:
        local = Path(folder, "stored")
        try:
            repository._download_file(path, str(local))
        except Exception as error:
            if is_transient(error):
                raise
            return False
        return local.is_file() and digest(local) == digest(source)

"""The requests of the writer: one method an operation, and three kinds of outcome.

A method returns (done), raises :class:`Refused` (the store will never take it) or :class:`Away` (try again
later). Each may be called again after any outcome without doing anything twice.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plato_core.errors import PlatoError
from plato_core.manifest import MANIFEST_NAME, checkpoint_name, read_manifest
from plato_core.tracking.artifacts import artifact_repository, put_file
from plato_core.tracking.azure import is_azure
from plato_core.tracking.batch import log_batch
from plato_core.tracking.client import make_client, never_repeated
from plato_core.tracking.ops import CreateRun, LogOp, SetStatus
from plato_core.tracking.transfer import upload_checkpoint

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_METRICS_A_BATCH = 1000
MAX_METRICS_A_BATCH_AZUREML = 200
MAX_PARAMS_A_BATCH = 100
MAX_TAGS_A_BATCH = 100
MAX_ENTRIES_A_BATCH = 1000

_TRY_AGAIN = frozenset({401, 403, 407, 408, 425, 429})  # credentials can be mended while the sweep goes on
_BUGS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)


class Refused(Exception):
    """The store will not take this request, however often it is sent."""


class Away(Exception):
    """The store did not take this request now: it is away, busy, or asks for credentials."""


@contextmanager
def outcome() -> Iterator[None]:
    """Sort whatever a request raises into :class:`Refused` and :class:`Away`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (Refused, Away):
        raise
    except MlflowException as error:
        # ENDPOINT_NOT_FOUND is what a gateway's own 404 page becomes, not an answer of MLflow's.
        code = str(error.error_code)
        status = error.get_http_status_code()
        final = code == "INVALID_STATE" or (_is_final(status) and code != "ENDPOINT_NOT_FOUND") or status == 501
        raise (Refused if final else Away)(_one_line(error)) from error
    except PlatoError as error:
        raise Refused(_one_line(error)) from error
    except Exception as error:
        response = getattr(error, "response", None)
        status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
        final = (
            _is_final(status)
            if isinstance(status, int)
            else (isinstance(error, _BUGS) and not isinstance(error, OSError))
            or (type(error) is Exception and str(error).startswith("UserError"))  # of Azure ML's plugin
        )
        raise (Refused if final else Away)(_one_line(error)) from error


@dataclass(frozen=True)
class FoundRun:
    """A trial's run that is in the store already.

    Attributes:
        run_id: Its id.
        step: The last step of which it has points, -1 if it has none.
        running: Whether it has not ended.
    """

    run_id: str
    step: int
    running: bool


class Sender:
    """Sends operations to one experiment of one store.

    Args:
        tracking_uri: The store.
        experiment_id: Where runs are created.
        sweep_id: Value of the tag ``plato.sweep_id``, by which a run that was created already is found again.
    """

    def __init__(self, tracking_uri: str, experiment_id: str, sweep_id: str) -> None:
        self.tracking_uri = tracking_uri
        self.experiment_id = experiment_id
        self.sweep_id = sweep_id
        self._azureml = is_azure(tracking_uri)
        self.max_metrics = MAX_METRICS_A_BATCH_AZUREML if self._azureml else MAX_METRICS_A_BATCH
        self.round_trip_s = 0.0

    @cached_property
    def _client(self) -> "MlflowClient":
        return make_client(self.tracking_uri, check=False)

    @property
    def client(self) -> "MlflowClient":
        """The one client, made at first use. Raises :class:`Away` when the store cannot be opened."""
        try:
            return self._client
        except PlatoError as error:
            raise Away(str(error)) from error

    def find_run(self, key: str) -> "FoundRun | None":
        """The run of this sweep's trial ``key``, if the store has one; of several the oldest."""
        client = self.client
        with outcome():
            runs = client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.plato.sweep_id = '{self.sweep_id}' and tags.plato.trial_id = '{key}'",
            )
        if not runs:
            return None
        run = min(runs, key=lambda run: run.info.start_time)
        # Its value is the step: a trial's own count.
        step = int(run.data.metrics.get("training_iteration", -1))
        return FoundRun(run.info.run_id, step, run.info.status == "RUNNING")

    def create_run(self, op: CreateRun) -> str:
        """Create the run and return its id. To repeat it, look with :meth:`find_run` first."""
        client = self.client
        with outcome(), never_repeated():
            run = client.create_run(self.experiment_id, start_time=op["time"], tags=op["tags"], run_name=op["name"])
        return run.info.run_id

    def log(self, run_id: str, ops: Sequence[LogOp]) -> int:
        """Send points, params and tags in one ``log_batch``; returns the number of points."""
        metrics: list[dict[str, Any]] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for op in ops:
            match op["op"]:
                case "metrics":
                    at = {"timestamp": op["time"], "step": op["step"]}
                    metrics += [{"key": k, "value": v, **at} for k, v in op["values"].items()]
                case "params":
                    params |= op["values"]
                case "tags":
                    tags |= op["values"]
        client = self.client
        started = time.monotonic()
        with outcome():
            log_batch(client, run_id, metrics, params, tags)
        took = time.monotonic() - started
        self.round_trip_s = took if not self.round_trip_s else 0.7 * self.round_trip_s + 0.3 * took
        return len(metrics)

    def set_status(self, run_id: str, op: SetStatus) -> None:
        """End the run with a status and a time, or take it up again."""
        if op["status"] == "RUNNING":
            self.take_up(run_id)
            return
        client = self.client
        with outcome():
            client.set_terminated(run_id, status=op["status"], end_time=op["time"])

    def take_up(self, run_id: str) -> None:
        """Say that a run that had ended goes on."""
        client = self.client
        with outcome():
            client.update_run(run_id, status="RUNNING")

    def upload_checkpoint(self, run_id: str, directory: Path) -> int:
        """Upload a checkpoint, its manifest last; returns the bytes sent."""
        client = self.client
        with outcome():
            return upload_checkpoint(client, run_id, directory, read_manifest(directory))

    def upload_file(self, run_id: str, path: Path) -> int:
        """Upload one file to the root of the run's artifacts; returns the bytes sent."""
        client = self.client
        with outcome():
            put_file(client, run_id, path)
            return path.stat().st_size

    def delete_checkpoint(self, run_id: str, iteration: int) -> None:
        """Delete a checkpoint from the store, manifest first, so that half of one never looks whole."""
        client = self.client
        if self._azureml:  # whose plugin says nothing and does nothing
            raise Refused("Azure ML has no request that deletes an artifact of a run")
        with outcome():
            repository = artifact_repository(client, run_id)
            folder = checkpoint_name(iteration)
            repository.delete_artifacts(f"{folder}/{MANIFEST_NAME}")
            repository.delete_artifacts(folder)


def batch_of(items: Iterable[tuple[int, dict[str, Any]]], max_metrics: int) -> list[tuple[int, dict[str, Any]]]:
    """The first items that fit into one ``log_batch``, at least one.

    Args:
        items: Numbered metrics, params and tags operations.
        max_metrics: How many points the store takes in one request.
    """
    limits = {"metrics": max_metrics, "params": MAX_PARAMS_A_BATCH, "tags": MAX_TAGS_A_BATCH}
    sizes = dict.fromkeys(limits, 0)
    batch: list[tuple[int, dict[str, Any]]] = []
    for number, op in items:
        sizes[op["op"]] += len(op["values"])
        full = sizes[op["op"]] > limits[op["op"]] or sum(sizes.values()) > MAX_ENTRIES_A_BATCH
        if batch and full:
            break
        batch.append((number, op))
    return batch


def _is_final(status: int) -> bool:
    return 400 <= status < 500 and status not in _TRY_AGAIN


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]

"""MLflow of the workspace: what a sweep writes there, written once, read back and removed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from plato_core.aml.doctor.case import Case
from plato_core.aml.doctor.finding import Finding, broken, fine, warned
from plato_core.errors import TrackingError
from plato_core.tracking.artifacts import artifact_repository, put_text
from plato_core.tracking.azure import canonical
from plato_core.tracking.client import make_client, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "plato-doctor"
_NAME, _CONTENT = "plato-doctor.txt", "written by plato aml doctor\n"
_MAY_WRITE = (
    "whoever is signed in needs the role AzureML Data Scientist on the workspace, and its storage must be reached from "
    "here; if both are so, try again in a while"
)
_KEEPS = f"Azure ML keeps the experiment {EXPERIMENT} and the file of {len(_CONTENT)} bytes"


def mlflow(case: Case) -> Finding:
    """See whether a run with a param, a metric and a file can be written and read. The run is deleted after."""
    uri = canonical(case.tracking_uri)
    if not case.write:
        make_client(uri)
        return fine("can be read; whether it can be written to was not tried")
    client = make_client(uri)  # which asks for the experiments, and says what is wrong where it gets no answer
    try:
        with tracking_errors(uri):
            return _tried(client)
    except TrackingError as error:
        # A refusal's status is lost on the way through MLflow, so that nothing tells it from a fault that passes.
        why = str(error).removeprefix(f"tracking store {uri}: ")
        return broken(f"can be read, but writing to it fails: {why}", _MAY_WRITE)


def _tried(client: MlflowClient) -> Finding:
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = found.experiment_id if found is not None else client.create_experiment(EXPERIMENT)
    run_id = client.create_run(experiment_id, run_name="plato aml doctor").info.run_id
    try:
        wrong = _written_and_read(client, run_id)
    finally:
        deleted = _deleted(client, run_id)
    if wrong:
        return broken(f"{wrong} of run {run_id} could not be read back as it was written", "try again in a while")
    if deleted:
        return fine(f"a param, a metric and a file were written and read; their run is deleted, {_KEEPS}")
    return warned(
        "a param, a metric and a file were written and read, but their run could not be deleted",
        f"delete run {run_id} of the experiment {EXPERIMENT} in Studio",
    )


def _written_and_read(client: MlflowClient, run_id: str) -> str:
    """Return what came back otherwise than it was written."""
    client.log_param(run_id, "written_by", "plato")
    client.log_metric(run_id, "answer", 42.0)
    path = put_text(client, run_id, _CONTENT, _NAME)
    data = client.get_run(run_id).data
    if data.params.get("written_by") != "plato":
        return "the param"
    if data.metrics.get("answer") != 42.0:
        return "the metric"
    with tempfile.TemporaryDirectory(prefix="plato-doctor-") as folder:
        local = artifact_repository(client, run_id).download_artifacts(path, folder)
        return "" if Path(local).read_text("utf-8") == _CONTENT else "the file"


def _deleted(client: MlflowClient, run_id: str) -> bool:
    try:
        client.set_terminated(run_id)
        client.delete_run(run_id)
    except Exception:  # the plugin's, azure.core's and requests' have no common base; the run is named to the user
        return False
    return True

import os

import pytest

from plato_core.aml.jobrun import NOT_FOR_TRIALS, JobRun, hidden, runtime_env
from plato_core.config_sources import load_config
from plato_core.tracking.artifacts import checkpoint_folders, checkpoint_in, is_absent, is_taken
from plato_core.tracking.azure import canonical, names_config, studio_page

WORKSPACE = "subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
URI = f"azureml://westeurope.api.azureml.ms/mlflow/v1.0/{WORKSPACE}?"
IN_JOB = {
    "AZUREML_RUN_ID": "pf-1-001",
    "MLFLOW_TRACKING_URI": URI,
    "MLFLOW_EXPERIMENT_ID": "guid",
    "MLFLOW_EXPERIMENT_NAME": "of-the-job",
}


def test_the_environment_of_a_job_says_which_run_is_its_own() -> None:
    job = JobRun.current(IN_JOB)
    assert job is not None
    assert (job.run_id, job.workspace.name, job.experiment_name) == ("pf-1-001", "w", "of-the-job")
    assert JobRun.current({}) is None
    assert JobRun.current(IN_JOB | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}) is None


def test_a_jobs_run_is_the_parent_only_of_what_is_tracked_in_the_jobs_workspace() -> None:
    other_case = URI.replace("v1.0", "v2.0").replace("resourceGroups/g/", "resourcegroups/G/").rstrip("?")
    assert JobRun.tracked_in(other_case, IN_JOB) is not None
    assert JobRun.tracked_in(URI.replace("workspaces/w", "workspaces/other"), IN_JOB) is None
    assert JobRun.tracked_in("sqlite:///mlflow.db", IN_JOB) is None
    assert JobRun.tracked_in(URI, {}) is None


def test_in_a_job_its_experiment_wins() -> None:
    given = {"experiment_name": "mine"}
    assert load_config(given, None, IN_JOB).experiment_name == "of-the-job"
    assert load_config(given, None, {"MLFLOW_TRACKING_URI": URI}).experiment_name == "mine"
    elsewhere = given | {"tracking_uri": "http://127.0.0.1:5000"}
    assert load_config(elsewhere, None, IN_JOB).experiment_name == "mine"


def test_trials_do_not_see_the_jobs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (IN_JOB | {"MLFLOW_RUN_ID": "pf-1-001", "MLFLOW_TRACKING_TOKEN": "t"}).items():
        monkeypatch.setenv(name, value)
    assert runtime_env() == {"env_vars": dict.fromkeys(NOT_FOR_TRIALS, "")}
    with hidden():
        assert not set(NOT_FOR_TRIALS) & set(os.environ)
    assert os.environ["MLFLOW_RUN_ID"] == "pf-1-001"
    monkeypatch.delenv("AZUREML_RUN_ID")
    assert runtime_env() is None


def test_a_workspace_has_one_address_and_its_runs_a_page() -> None:
    assert canonical(URI) == f"azureml://westeurope.api.azureml.ms/mlflow/v2.0/{WORKSPACE}"
    page = "https://ml.azure.com/runs/r1?wsid=/subscriptions/s/resourcegroups/g/workspaces/w"
    assert studio_page(URI, "r1") == page
    assert studio_page("azureml://westeurope.api.azureml.ms/x", "r1") is None
    assert studio_page(URI.replace("api.azureml.ms", "api.ml.azure.us"), "r").startswith("https://ml.azure.us/")  # type: ignore[union-attr]


@pytest.mark.parametrize(("named", "is_one"), [("config.json", True), ("azureml", True), (URI, False), ("x.db", False)])
def test_a_workspaces_file_may_stand_for_its_address(named: str, is_one: bool) -> None:
    assert names_config(named) is is_one


def test_a_checkpoint_that_was_uploaded_again_is_still_that_checkpoint() -> None:
    folders = checkpoint_folders("checkpoint_000012")
    assert [next(folders) for _ in range(3)] == [
        "checkpoint_000012",
        "upload-2_checkpoint_000012",
        "upload-3_checkpoint_000012",
    ]
    assert len(list(folders)) < 100, "a store that refuses every path is not asked for ever"
    assert checkpoint_in("upload-3_checkpoint_000012") == checkpoint_in("checkpoint_000012") == "checkpoint_000012"
    assert checkpoint_in("user_logs") is None


def test_what_azure_says_of_a_path_is_understood() -> None:
    assert is_taken(Exception("UserError: Resource Conflict: ArtifactId x already exists."))
    assert not is_taken(Exception("UserError: over the size limit"))
    assert is_absent(Exception("File with path a was not found,\navailable files include: "))

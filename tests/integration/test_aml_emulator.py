"""The emulated Azure ML workspace, as the unpatched SDKs see it: over real HTTPS, by environment variables alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from aml_bed import Emulator, running_emulator
from stack import ROOT
from thorough import thorough
from waiting import wait_until

from plato_core.aml.client import Failure, JobClient
from plato_core.aml.fields import JobFields
from plato_core.aml.job import JobSpec, job_spec
from plato_core.aml.joblog import JobLog
from plato_core.aml.workspace import Workspace
from plato_core.errors import AmlError, AmlUnavailable

ENDED = {"Completed", "Failed", "Canceled"}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running_emulator(tmp_path_factory.mktemp("cloud"), phase=0.05, grace=1.0) as running:
        yield running


@pytest.fixture(autouse=True)
def variables(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in emulator.env().items():
        monkeypatch.setenv(name, text)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    yield
    emulator.control("clear_faults")
    emulator.control("release")


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "hello.py").write_text("print('hello from the code folder')\n")
    return folder


@pytest.fixture
def client(emulator: Emulator, variables: None) -> Any:
    from azure.ai.ml import MLClient
    from azure.identity import EnvironmentCredential

    return MLClient(
        EnvironmentCredential(),
        emulator.subscription_id,
        emulator.resource_group,
        emulator.workspace,
        logging_enable=False,
    )


@pytest.fixture
def submit(client: Any, emulator: Emulator, code: Path) -> Callable[..., str]:
    from azure.ai.ml import command
    from azure.ai.ml.entities import Environment

    def submitted(name: str, line: str, **more: Any) -> str:
        more = {"compute": "cpu-cluster", "environment": Environment(image="plato:1"), "code": str(code), **more}
        return client.jobs.create_or_update(command(command=line, name=name, experiment_name="checks", **more)).name

    return submitted


def wait(emulator: Emulator, job: str, *statuses: str) -> dict[str, Any]:
    wanted, deadline = set(statuses) or ENDED, time.monotonic() + 120.0
    while (known := emulator.job(job))["status"] not in wanted:
        assert time.monotonic() < deadline, f"{job} is {known['status']}, not {wanted}: {emulator.log(job)}"
        assert known["status"] not in ENDED, f"{job}: {known}: {emulator.log(job)}"
        time.sleep(0.05)
    return known


def test_a_job_runs_its_code_in_a_clean_environment_and_its_log_is_read_as_it_grows(
    emulator: Emulator, client: Any, submit: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_LAPTOP", "1")
    go = emulator.datastore("go")
    line = f"python hello.py; env | cut -d= -f1; while [ ! -e {go} ]; do sleep 0.1; done; echo the end"
    name = submit("grows-001", line, environment_variables={"GIVEN": "yes"})
    wait(emulator, name, "Running")
    wait_until(lambda: b"GIVEN" in _log_piece(emulator, name, 0), "the log has grown")
    first = _log_piece(emulator, name, 0)
    assert first.startswith(b"hello from the code folder\n")
    names = first.decode().split()
    assert "GIVEN" in names
    assert "AZUREML_RUN_ID" in names
    assert "OF_THE_LAPTOP" not in names
    assert "AZURE_CLIENT_SECRET" not in names
    go.touch()
    assert wait(emulator, name)["status"] == "Completed"
    assert _log_piece(emulator, name, len(first)).endswith(b"the end\n")
    passed = ["NotStarted", "Starting", "Provisioning", "Preparing", "Queued", "Running", "Finalizing", "Completed"]
    assert emulator.job(name)["history"] == passed
    client.jobs.download(name, download_path=tmp_path, all=True)
    assert list(tmp_path.rglob("std_log.txt"))


def _log_piece(emulator: Emulator, job: str, offset: int) -> bytes:
    """Reads on, as a follower of the log does: where it is from the artifacts, a piece of it from the blobs."""
    from azure.identity import EnvironmentCredential
    from azure.storage.blob import BlobClient

    token = EnvironmentCredential().get_token("https://management.azure.com/.default").token
    url = emulator.tracking_uri.replace("azureml://", "https://").replace("/mlflow/v1.0", "/history/v1.0")
    answer = requests.get(
        f"{url}/experiments/checks/runs/{job}/artifacts/contentinfo",
        params={"path": "user_logs/std_log.txt"},
        headers={"Authorization": f"Bearer {token}"},
        timeout=10.0,
    )
    if answer.status_code == 404:
        return b""
    blob = BlobClient.from_blob_url(answer.json()["contentUri"])
    return blob.download_blob(offset=offset).readall() if blob.get_blob_properties().size > offset else b""


def test_a_queued_job_is_cancelled_and_never_runs(emulator: Emulator, client: Any, submit: Callable[..., str]) -> None:
    emulator.control("hold")
    name = submit("queued-001", "touch ran")
    wait(emulator, name, "Queued")
    client.jobs.begin_cancel(name).result()
    assert emulator.job(name)["status"] == "Canceled"
    assert "Running" not in emulator.job(name)["history"]


def test_a_running_job_is_asked_to_end_and_killed_if_it_does_not(
    emulator: Emulator, client: Any, submit: Callable[..., str]
) -> None:
    polite = submit("polite-001", "trap 'echo asked; exit 0' TERM; echo begun; while true; do sleep 0.1; done")
    rude = submit("rude-001", "trap '' TERM; echo begun; while true; do sleep 0.1; done")
    for name in (polite, rude):
        wait(emulator, name, "Running")
        while "begun" not in emulator.log(name):
            time.sleep(0.05)
        client.jobs.begin_cancel(name)
    assert wait(emulator, polite)["status"] == wait(emulator, rude)["status"] == "Canceled"
    assert "asked" in emulator.log(polite)
    assert client.jobs.get(polite).status == "Canceled"


def test_a_failed_command_is_a_failed_job_with_its_exit_code(emulator: Emulator, submit: Callable[..., str]) -> None:
    known = wait(emulator, submit("fails-001", "exit 3"))
    assert known["status"] == "Failed"
    assert "exited with status code 3" in known["error"]["message"]


def test_a_job_over_its_time_limit_is_cancelled(emulator: Emulator, submit: Callable[..., str]) -> None:
    from azure.ai.ml.entities import CommandJobLimits

    known = wait(emulator, submit("long-001", "sleep 60", limits=CommandJobLimits(timeout=1)))
    assert known["status"] == "Canceled"
    assert "time limit" in known["error"]["message"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"instance_count": 9}, "Requested 9 nodes but AmlCompute cluster only has 4"),
        ({"compute": "no-such"}, "compute target no-such was not found"),
        ({"environment": "none-such:7"}, "Could not find Environment Name: none-such"),
        ({"tags": {"t": "x" * 1001}}, "FieldName=TagValue, Limit=1000"),
        ({"display_name": "x" * 257}, "FieldName=DisplayName, Limit=256"),
    ],
)
def test_what_the_workspace_does_not_take_is_refused_at_once(
    emulator: Emulator, submit: Callable[..., str], more: dict[str, Any], said: str
) -> None:
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match=said):
        submit("refused-001", "true", **more)
    assert "refused-001" not in emulator.jobs()


def test_a_job_over_the_quota_fails_after_it_was_queued(emulator: Emulator, submit: Callable[..., str]) -> None:
    known = wait(emulator, submit("quota-001", "true", compute="no-quota"))
    assert (known["status"], known["error"]["code"]) == ("Failed", "ClusterCoreQuotaReached")


def test_a_failure_that_a_test_plans_and_a_status_that_it_sets_are_shown(
    emulator: Emulator, client: Any, submit: Callable[..., str]
) -> None:
    emulator.control("fail_next", at="Preparing", code="ImageBuildFailure", message="conda could not solve")
    known = wait(emulator, submit("image-001", "true"))
    assert (known["error"]["code"], known["history"][-2:]) == ("ImageBuildFailure", ["Preparing", "Failed"])
    name = submit("silent-001", f"while [ ! -e {emulator.datastore('speak')} ]; do sleep 0.1; done")
    wait(emulator, name, "Running")
    emulator.control("status", job=name, status="NotResponding")
    assert client.jobs.get(name).status == "NotResponding"
    emulator.datastore("speak").touch()
    assert wait(emulator, name)["status"] == "Completed"


def test_jobs_run_at_once_as_far_as_the_nodes_go(emulator: Emulator, submit: Callable[..., str]) -> None:
    line = f"while [ ! -e {emulator.datastore('all')} ]; do sleep 0.1; done"
    names = [submit(f"many-00{number}", line, instance_count=2) for number in range(3)]
    for name in names[:2]:
        wait(emulator, name, "Running")
    assert emulator.job(names[2])["status"] in {"NotStarted", "Starting", "Provisioning", "Preparing", "Queued"}
    emulator.datastore("all").touch()
    assert [wait(emulator, name)["status"] for name in names] == ["Completed"] * 3


def test_a_submit_whose_answer_was_lost_is_one_job_and_a_different_one_is_refused(
    emulator: Emulator, submit: Callable[..., str]
) -> None:
    from azure.core.exceptions import HttpResponseError

    emulator.fault("^PUT .*/jobs/twice-001", reset=True, handled=True)
    with_retry = submit("twice-001", "echo once")
    wait(emulator, with_retry)
    assert submit("twice-001", "echo once") == "twice-001"
    assert emulator.job("twice-001")["attempt"] == 1
    with pytest.raises(HttpResponseError, match="existing job's Command cannot be changed"):
        submit("twice-001", "echo twice")
    puts = [one for one in emulator.requests() if one["m"] == "PUT" and one["path"].endswith("/jobs/twice-001")]
    assert [one["status"] for one in puts] == [None, 200, 200, 400]


def test_errors_delays_and_half_answers_are_retried_by_the_sdk(emulator: Emulator, client: Any) -> None:
    emulator.fault("^GET .*/workspaces/ws-emu$", status=429, times=2, headers={"Retry-After": "0"})
    emulator.fault("^GET .*/workspaces/ws-emu$", reset=True)
    emulator.fault("^GET .*/workspaces/ws-emu$", status=0, delay_s=0.2)
    assert client.workspaces.get().location == "eastus"
    emulator.fault("^GET .*/computes/cpu-cluster$", truncate=True)
    assert client.compute.get("cpu-cluster").max_instances == 4
    spoilt = [one for one in emulator.requests() if one.get("fault")]
    assert {429, None} <= {one["status"] for one in spoilt}


def test_a_long_pause_that_azure_asks_for_keeps_no_question_waiting(
    emulator: Emulator, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = submit("throttled-001", "echo said; sleep 60")
    wait(emulator, name, "Running")
    monkeypatch.setattr("plato_core.aml.transport._LONGEST_S", 0.01)
    jobs = JobClient(Workspace.of(emulator.tracking_uri))
    log = JobLog(jobs, name, "checks")
    long: dict[str, Any] = {"status": 429, "headers": {"Retry-After": "300"}}
    asked = (r"login\.microsoft", rf"^GET .*/jobs/{name}$", "/contentinfo$", "/std_log.txt$", "/cancel$", "/details$")
    for match in asked:
        emulator.fault(match, times=2, **long)
    began = time.monotonic()
    assert jobs.find(name) is not None
    while not log.new_lines():
        assert time.monotonic() - began < 60.0
    jobs.cancel(name)
    assert jobs.failure(name) == Failure()
    assert time.monotonic() - began < 60.0
    assert emulator.control("faults") == []
    emulator.fault("^GET .*/jobs/", times=100, **long)
    with pytest.raises(AmlUnavailable):  # whoever asks can do something else now
        jobs.find(name)
    emulator.control("clear_faults")
    assert wait(emulator, name)["status"] == "Canceled"


def test_a_secret_that_was_rotated_is_taken_by_the_client_that_is_there(
    emulator: Emulator, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = submit("rotated-001", "true")
    wait(emulator, name)
    jobs = JobClient(Workspace.of(emulator.tracking_uri))
    assert jobs.find(name) is not None
    assert jobs.failure(name) == Failure()
    emulator.control("client_secret", value="the-next-secret-of-this-test")
    try:
        for _ in range(2):
            with pytest.raises(AmlError, match="AADSTS7000215"):
                jobs.find(name)
        monkeypatch.setenv("AZURE_CLIENT_SECRET", "the-next-secret-of-this-test")
        assert jobs.find(name) is not None
        assert jobs.failure(name) == Failure()
    finally:
        emulator.control("client_secret", value=emulator.client_secret)


def own_code(folder: Path, name: str, command: str) -> JobSpec:
    """What a job is to be whose code is a folder's."""
    (folder / "image").mkdir(exist_ok=True)
    (folder / "image" / "Dockerfile").write_text("FROM python:3.11\n")
    fields = JobFields(code=str(folder), compute="cpu-cluster", environment="image")
    return job_spec(fields, name=name, display_name=name, command=command, experiment="checks", tags={}, env={})


def test_a_job_has_of_a_folder_what_is_not_left_out(emulator: Emulator, tmp_path: Path) -> None:
    (code := tmp_path / "my project").mkdir()
    (tmp_path / "shared.py").write_text("'shared'")
    (code / "linked.py").symlink_to("../shared.py")
    (code / ".venv").mkdir()
    (code / ".venv" / "all").symlink_to(code)
    (code / "flow.py").write_text(f"'{tmp_path}'")
    (code / ".amlignore").write_text(".venv/\nimage/Docker*\n")
    jobs = JobClient(Workspace.of(emulator.tracking_uri))
    for name in ("left-out-001", "left-out-002"):
        jobs.submit(own_code(code, name, "find . -type f | sort; cat linked.py"))
        assert wait(emulator, name)["status"] == "Completed"
        assert emulator.log(name).split() == ["./.amlignore", "./flow.py", "./linked.py", "'shared'"]
    uploads = [one for one in emulator.requests() if one["m"] == "PUT" and one["path"].endswith("flow.py")]
    assert len(uploads) == 1  # the second time it was there


def test_a_file_of_the_code_that_cannot_be_stored_is_an_error_and_not_a_wait_for_ever(
    emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "only.py").write_text(f"print('{tmp_path}')\n")
    spec = own_code(tmp_path, "stored-001", "python only.py")
    jobs = JobClient(Workspace.of(emulator.tracking_uri))
    emulator.fault(r"^PUT .*/only\.py$", status=429)
    with pytest.raises(AmlUnavailable):
        jobs.submit(spec)
    emulator.fault(r"^PUT .*/only\.py$", status=409, code="BlobAlreadyExists")
    with pytest.raises(AmlUnavailable, match="the answer was lost"):
        jobs.submit(spec)
    assert jobs.submit(spec).name == "stored-001"
    wait(emulator, "stored-001")
    assert str(tmp_path) in emulator.log("stored-001")


def test_a_preempted_job_waits_again_and_runs_anew_with_its_named_output(
    emulator: Emulator, submit: Callable[..., str]
) -> None:
    from azure.ai.ml import Output

    store = Output(
        type="uri_folder", mode="rw_mount", path="azureml://datastores/workspaceblobstore/paths/plato/sweeps"
    )
    line = "cd $AZURE_ML_OUTPUT_sweeps; [ -e half ] && exec echo the other half; touch half; sleep 60"
    name = submit("spot-001", line, compute="spot-cluster", outputs={"sweeps": store})
    half = emulator.datastore("plato/sweeps/half")
    while not half.exists():
        time.sleep(0.05)
    emulator.control("preempt", job=name)
    known = wait(emulator, name)
    assert (known["status"], known["attempt"]) == ("Completed", 2)
    assert known["history"].count("Queued") == 2
    assert "the other half" in emulator.log(name)


def test_the_log_of_a_job_that_begins_anew_is_read_whole_though_nobody_saw_it_wait(
    emulator: Emulator, submit: Callable[..., str]
) -> None:
    again = emulator.datastore("again")
    name = submit("spot-002", f"[ -e {again} ] && exec seq 101 150; seq 5; touch {again}; sleep 60")
    while not again.exists():
        time.sleep(0.05)
    log = JobLog(JobClient(Workspace.of(emulator.tracking_uri)), name, "checks")
    assert log.new_lines() == [str(number) for number in range(1, 6)]
    assert log.new_lines() == []
    emulator.control("preempt", job=name)
    assert wait(emulator, name)["status"] == "Completed"
    assert log.new_lines(to_the_end=True) == [str(number) for number in range(101, 151)]


def test_mpi_ranks_know_their_nodes_and_one_that_dies_ends_the_others(
    emulator: Emulator, submit: Callable[..., str]
) -> None:
    from azure.ai.ml import MpiDistribution

    line = (
        "echo rank $AZUREML_CR_NODE_RANK of $AZUREML_NODE_COUNT at $PLATO_NODE_IP, $AZ_BATCHAI_JOB_MASTER_NODE_IP leads"
    )
    more = {"instance_count": 2, "distribution": MpiDistribution(process_count_per_instance=1)}
    assert wait(emulator, submit("ranks-001", line, **more))["status"] == "Completed"
    other = (emulator.artifacts("ranks-001") / "user_logs" / "std_log_process_1.txt").read_text()
    own, leader = other.removeprefix("rank 1 of 2 at ").split()[:2]
    assert own != f"{leader},"
    assert emulator.log("ranks-001").startswith(f"rank 0 of 2 at {leader}, {leader} leads")
    name = submit("ranks-002", "echo begun; sleep 60", **more)
    while "begun" not in emulator.log(name):
        time.sleep(0.05)
    emulator.control("kill_node", job=name, node=1)
    assert wait(emulator, name)["status"] == "Failed"


@thorough
def test_ray_runs_on_every_node_and_the_command_on_the_head(
    emulator: Emulator, submit: Callable[..., str], code: Path
) -> None:
    from azure.ai.ml import RayDistribution

    (code / "nodes.py").write_text(
        "import os, ray, time\n"
        "ray.init(address='auto', logging_level='error')\n"
        "while len(ray.nodes()) < int(os.environ['AZUREML_NODE_COUNT']): time.sleep(0.1)\n"
        "print('nodes', *sorted(node['NodeManagerAddress'] for node in ray.nodes()))\n"
    )
    name = submit("ray-001", "python nodes.py", instance_count=2, distribution=RayDistribution())
    assert wait(emulator, name)["status"] == "Completed", emulator.log(name)
    assert f"nodes {' '.join(emulator.job(name)['addresses'])}" in emulator.log(name)


def test_an_environment_from_a_build_context_is_registered_and_its_latest_version_found(
    emulator: Emulator, client: Any, submit: Callable[..., str], tmp_path: Path
) -> None:
    from azure.ai.ml.entities import BuildContext, Environment

    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    built = Environment(name="plato", version="3", build=BuildContext(path=str(tmp_path)))
    assert client.environments.create_or_update(built).version == "3"
    assert wait(emulator, submit("latest-001", "true", environment="plato@latest"))["status"] == "Completed"
    inline = Environment(build=BuildContext(path=str(tmp_path)))
    assert wait(emulator, submit("inline-001", "true", environment=inline))["status"] == "Completed"


def test_child_runs_artifacts_and_limits_of_mlflow_through_its_azure_plugin(
    emulator: Emulator, submit: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name = submit("parent-001", "true")
    wait(emulator, name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", emulator.tracking_uri)  # the plugin's artifacts know no other way
    client = MlflowClient()
    parent = client.get_run(name)
    assert parent.info.status == "FINISHED"
    child = client.create_run(parent.info.experiment_id, run_name="trial", tags={"mlflow.parentRunId": name})
    run = child.info.run_id
    client.log_metric(run, "episode_return", 3.0, step=1)
    found = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{name}'")
    assert [(one.info.run_id, one.data.metrics) for one in found] == [(run, {"episode_return": 3.0})]

    (tmp_path / "weights.bin").write_bytes(b"x" * 1000)
    client.log_artifact(run, str(tmp_path / "weights.bin"), "model")
    assert [one.path for one in client.list_artifacts(run)] == ["model"]
    with pytest.raises(MlflowException, match="logged-models"):  # MLflow 3 asks for those, the service has none
        client.list_artifacts(run, "model")
    fetched = client.download_artifacts(run, "model/weights.bin", str(tmp_path))
    assert Path(fetched).read_bytes() == b"x" * 1000
    with pytest.raises(Exception, match="Resource Conflict"):
        client.log_artifact(run, str(tmp_path / "weights.bin"), "model")

    for number in range(49):
        client.log_metric(run, f"m{number}", 1.0)
    with pytest.raises(MlflowException, match="FieldName=Metrics, Limit=50"):
        client.log_metric(run, "one_too_many", 1.0)
    with pytest.raises(MlflowException, match="FieldName=TagsValue, Limit=1000"):
        client.set_tag(run, "t", "x" * 1001)
    wanted: list[dict[str, Any]] = [
        {"order_by": ["metrics.m1 DESC"]},
        {"filter_string": "tags.a != 'b'"},
        {"filter_string": "metrics.`a` > 1"},
        {"filter_string": "tags.a = 'b' OR tags.a = 'c'"},
    ]
    for arguments in wanted:
        with pytest.raises(MlflowException, match="not supported"):
            client.search_runs([parent.info.experiment_id], **arguments)


def test_a_token_that_has_expired_is_refused_and_renewed_within_a_job(
    emulator: Emulator, submit: Callable[..., str], code: Path
) -> None:
    (code / "long.py").write_text(
        "import os, requests, time\n"
        "from mlflow import MlflowClient\n"
        "client, name = MlflowClient(), os.environ['MLFLOW_RUN_ID']\n"
        "client.log_metric(name, 'before', 1.0)\n"
        "print('before', flush=True)\n"
        "while not os.path.exists(os.environ['GO']): time.sleep(0.1)\n"
        "client.log_metric(name, 'after', 1.0)\n"
        "url = os.environ['MLFLOW_TRACKING_URI'].replace('azureml:', 'https:') + '/api/2.0/mlflow/runs/get'\n"
        "first = {'Authorization': 'Bearer ' + os.environ['AZUREML_RUN_TOKEN']}\n"
        "print(requests.get(url, params={'run_id': name}, headers=first).status_code)\n"
    )
    emulator.control("token_seconds", seconds=90.0)  # the plugin renews one that has less than 95 s left
    try:
        name = submit("tokens-001", "python long.py", environment_variables={"GO": str(emulator.datastore("go-on"))})
        while "before" not in emulator.log(name):
            assert emulator.job(name)["status"] not in ENDED, emulator.log(name)
            time.sleep(0.1)
    finally:
        emulator.control("token_seconds", seconds=3600.0)
    emulator.control("expire_run_token", job=name)
    emulator.datastore("go-on").touch()
    assert wait(emulator, name)["status"] == "Completed", emulator.log(name)
    assert emulator.log(name).split() == ["before", "401"]
    renewed = [one for one in emulator.requests() if one["path"].endswith("/runs/tokens-001/token")]
    assert renewed[-1]["status"] == 200


def test_a_wrong_secret_of_the_principal_is_refused(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import EnvironmentCredential

    monkeypatch.setenv("AZURE_CLIENT_SECRET", "another")
    with pytest.raises(ClientAuthenticationError, match="AADSTS7000215"):
        EnvironmentCredential().get_token("https://management.azure.com/.default")


def test_a_job_reads_a_key_vault_secret_by_its_identity_and_not_by_its_run_token(
    emulator: Emulator, submit: Callable[..., str], code: Path
) -> None:
    url = emulator.set_secret("prefect-api-key", "pnu_very_secret")
    (code / "secret.py").write_text(
        "import os, sys, requests\n"
        "from azure.identity import ManagedIdentityCredential\n"
        "token = ManagedIdentityCredential().get_token('https://vault.azure.net/.default').token\n"
        "for one in (token, os.environ['AZUREML_RUN_TOKEN']):\n"
        "    answer = requests.get(sys.argv[1] + '?api-version=7.4', headers={'Authorization': f'Bearer {one}'})\n"
        "    print(answer.status_code, len(answer.json().get('value', '')))\n"
    )
    wait(emulator, submit("secret-001", f"python secret.py {url}"))
    assert emulator.log("secret-001") == "200 15\n401 0\n"
    assert "pnu_very_secret" in emulator.secrets()
    assert "pnu_very_secret" not in (emulator.folder / "requests.jsonl").read_text()


def test_every_host_that_is_not_azures_is_refused_and_named(emulator: Emulator) -> None:
    for url in ("https://example.com/", "http://example.org/"):
        with pytest.raises(requests.RequestException):
            requests.get(url, timeout=10.0).raise_for_status()
    assert {"example.com", "example.org"} <= set(emulator.refused())


def test_no_credential_is_in_the_record(emulator: Emulator, submit: Callable[..., str]) -> None:
    wait(emulator, submit("record-001", "true"))
    recorded = (emulator.folder / "requests.jsonl").read_text()
    handed_out = emulator.secrets()
    assert emulator.client_secret in handed_out
    assert not [one for one in handed_out if one in recorded]


def test_nothing_is_left_of_an_emulator_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aml_emulator", "--folder", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT / "tests", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    database = os.fsencode(str(tmp_path / "mlflow.db"))
    try:
        while not _mentioning(database):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not _mentioning(database), "its processes are gone")


def _mentioning(text: bytes) -> list[str]:
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [line.parent.name] if text in line.read_bytes() else []
        except OSError:
            continue
    return found

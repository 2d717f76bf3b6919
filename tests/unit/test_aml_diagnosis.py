"""What a job died of, by the signs that Azure ML and its log give."""

import re

import pytest

from plato_core.aml.diagnosis import Evidence, diagnose


@pytest.mark.parametrize(
    ("message", "tail", "cause"),
    [
        ("The node was preempted by a higher-priority job", (), "preemption"),
        ("Job was evicted: low priority node has been reclaimed", (), "preemption"),
        ("Requested 9 nodes but AmlCompute cluster only has 4 maximum nodes.", (), "quota or capacity"),
        ("Operation results in exceeding quota limits of Core. Maximum allowed: 4", (), "quota or capacity"),
        ("The specified compute target cpu-cluter was not found.", (), "name of the compute is wrong"),
        ("Image build failed. Check the image build log", (), "image could not be built"),
        ("failed to pull image viennaprivate.azurecr.io/azureml: manifest unknown", (), "image could not be built"),
        (
            "exited with status code 205",
            ("ORTE has lost communication with a remote daemon.",),
            "a node of the job was lost",
        ),
        ("User process 'bash' exited with status code 137.", (), "out of memory"),
        ("exited with status code 1", ("ray.exceptions.OutOfMemoryError: Task was killed",), "out of memory"),
        ("exited with status code 1", ("OSError: [Errno 28] No space left on device",), "disk is full"),
        ("exited with status code 2", ("error: the job has Ray 2.55.0, the worker 2.60.0",), "its Ray is another"),
        ("exited with status code 1", ("1 of 4 Ray nodes came within 900 s",), "not all nodes"),
        (
            "exited with status code 1",
            ("httpx.ConnectError: All connection attempts failed",),
            "no route from the cluster to the Prefect API at https://prefect.example.com/api",
        ),
        (
            "exited with status code 1",
            ("Client error '401 Unauthorized' for url 'https://p/api/x'",),
            "refused the job's",
        ),
        ("exited with status code 1", ("SecretNotFound: https://v.vault.azure.net/secrets/x",), "from the key vault"),
        ("exited with status code 1", ("DefaultAzureCredential: CredentialUnavailableError",), "missing rights"),
        ("exited with status code 1", ("ModuleNotFoundError: No module named 'ray'",), "lacks a package"),
    ],
)
def test_the_likely_cause_is_named_with_what_to_do(message: str, tail: tuple[str, ...], cause: str) -> None:
    found = diagnose(
        Evidence("Failed", "UserError", message, tail, compute="cpu", api_url="https://prefect.example.com/api")
    )
    assert cause in found.cause
    assert found.advice
    assert found.known
    assert found.message.startswith(f"The job failed: {message.rstrip('.')}")
    assert "\n" not in found.message


_POOL = "HTTPSConnectionPool(host='{host}', port=443): Max retries exceeded with url: /x (Caused by {why})"


@pytest.mark.parametrize("prefect", [True, False])
@pytest.mark.parametrize(
    ("line", "host"),
    [
        (_POOL.format(host="eastus.api.azureml.ms", why="NameResolutionError('x')"), "eastus.api.azureml.ms"),
        ("ServiceRequestError: <HTTPSConnection at 0x1>: Failed to resolve 'a.blob.core.windows.net'", "a.blob.core."),
        ("[Errno 111] Connection refused by https://login.microsoftonline.com/t", "login.microsoftonline.com"),
        ("Connection to management.azure.com timed out. (connect timeout=10)", "management.azure.com"),
        (
            "https://v.vault.azure.net/secrets/x: the vault does not answer (Name or service not known)",
            "v.vault.azure.",
        ),
    ],
)
def test_a_host_of_azure_that_is_not_reached_is_not_taken_for_prefects(line: str, host: str, prefect: bool) -> None:
    tail = ("waiting for Ray", line, "RuntimeError: that was it")
    found = diagnose(Evidence("Failed", message="exited with status code 1", tail=tail, prefect=prefect))
    assert f"no route from the cluster to {host}" in found.cause
    assert "private endpoints" in found.advice


@pytest.mark.parametrize(
    ("line", "prefect"),
    [
        (_POOL.format(host="mlflow.example.com", why="NewConnectionError('[Errno 111] Connection refused')"), True),
        (_POOL.format(host="mlflow.example.com", why="NewConnectionError('x')"), False),
        ("httpx.ConnectError: All connection attempts failed", False),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", False),
    ],
)
def test_a_host_of_somebody_else_that_is_not_reached_is_neither_azures_nor_prefects(line: str, prefect: bool) -> None:
    found = diagnose(Evidence("Failed", message="exited with status code 1", tail=(line,), prefect=prefect))
    assert "could not connect to a host that it needs" in found.cause


def test_answers_that_are_errors_are_no_missing_route() -> None:
    line = _POOL.format(host="eastus.api.azureml.ms", why="ResponseError('too many 503 error responses')")
    assert "route" not in diagnose(Evidence("Failed", message="exited with status code 1", tail=(line,))).message


def test_a_job_beyond_its_time_limit_was_not_cancelled_by_a_person() -> None:
    late = diagnose(Evidence("Canceled", seconds=3700.0, timeout_seconds=3600))
    assert late.cause == "Cause: the time limit of 3600 s."
    assert (
        "Somebody cancelled it in Studio" in diagnose(Evidence("Canceled", seconds=100.0, timeout_seconds=3600)).cause
    )
    assert "Somebody cancelled it" in diagnose(Evidence("Canceled")).cause


def test_a_job_that_is_gone_says_so() -> None:
    assert diagnose(Evidence("")).message.startswith(
        "The job no longer exists in Azure ML. Likely cause: it was deleted"
    )
    assert "no sign of life" in diagnose(Evidence("NotResponding", flow_state="Running")).happened


def test_an_unknown_cause_is_not_guessed() -> None:
    found = diagnose(Evidence("Failed", message="Something else", ran=False, flow_state="Queued"))
    assert found.message == (
        "The job failed before it ran, while the flow run was Queued: Something else. "
        "No known cause stands in its error or its log. Read the whole log of the job in Studio."
    )
    assert not found.known


def test_an_ordinary_failure_of_a_flow_is_no_quota() -> None:
    text = "trial 3 of 4 stopped; 2 nodes; episode return 41.2; saved to /mnt/outputs"
    assert not diagnose(Evidence("Failed", message=text)).known
    assert not re.search(r"quota|memory", diagnose(Evidence("Failed", message=text)).message)

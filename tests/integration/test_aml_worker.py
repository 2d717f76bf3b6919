"""The worker of type `azure-ml` between a real Prefect server and an emulated workspace, which runs the jobs."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aml_bed import running_emulator
from aml_faults import CLASSES, OF_A_JOB, OF_HOME, Faulty
from aml_worker_bed import POOL, Bed, GuardedServer, project
from thorough import SOAKED, soaked, thorough
from waiting import wait_until

from plato_core.aml.logcopy import LOG_LABEL
from plato_core.aml.workspace import Workspace

pytestmark = pytest.mark.timeout(600)
PASSWORD = "a-password-of-this-test"
CLOSED = 9  # a port that nobody listens at
GROWS_BY = 20_000_000  # bytes, at most, of a worker that polls some jobs for seconds


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("aml")
    with (
        running_emulator(folder / "emulator", phase=0.3) as emulator,
        GuardedServer(folder / "prefect", f"admin:{PASSWORD}") as server,
    ):
        secret = emulator.set_secret("prefect-auth-string", f"admin:{PASSWORD}")
        settings = {"api_url": server.api_url, "api_auth_secret": secret, "identity": "managed"}
        bed = Bed(project(folder, emulator, **settings), server, emulator)
        bed.prefect("work-pool", "create", POOL, "--type", "azure-ml")
        bed.prefect("deploy", "--all")
        yield bed


@pytest.fixture(scope="module")
def worker(bed: Bed) -> Iterator[psutil.Process]:
    with bed.worker() as process:
        yield psutil.Process(process.pid)


def job_of(run_id: str, attempt: int = 0) -> str:
    return f"pf-{run_id}-{attempt:03d}"


@thorough
def test_a_worker_that_was_killed_is_followed_by_the_next(bed: Bed) -> None:
    """The first test of this file, while no other worker is there."""
    killed = bed.folder.parent / "killed"
    with bed.worker() as first:
        run_id = bed.start({"seconds": 45})
        dead = bed.start(command=f"until test -e {killed}; do sleep 0.1; done; exit 1")
        wait_until(lambda: bed.state_of(run_id) == "Running", "the flow runs")
        wait_until(lambda: "printed by the flow" in said(bed, run_id), "the log is copied")
        # Killed in between, a worker has its next repeat a line, so as to lose none.
        wait_until(lambda: _noted(bed, run_id) == _copied(bed, run_id), "what was copied is noted")
        wait_until(lambda: bed.state_of(dead) == "Starting", "the other job runs")
        first.kill()
        first.wait()
        killed.touch()
        assert bed.job_ended(job_of(dead)) == "Failed"  # with nobody to see it
    with bed.worker():
        assert bed.ended(run_id)["state_name"] == "Completed"
        assert bed.job_ended(job_of(run_id)) == "Completed"
        wait_until(lambda: f"Job {job_of(run_id)} is Completed" in said(bed, run_id), "the second worker sees the end")
        assert bed.ended(dead)["state_name"] == "Crashed"
    assert said(bed, run_id).count("printed by the flow") == 1
    assert sorted(bed.emulator.jobs()) == sorted([job_of(run_id), job_of(dead)])  # neither was submitted twice


@soaked
def test_a_worker_whom_nobody_signed_in_crashes_its_runs_and_says_how_to(bed: Bed) -> None:
    """It too is there alone."""
    variables = dict.fromkeys(("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"))
    with dataclasses.replace(bed, variables=variables).worker():
        run = bed.ended(bed.start())
    assert run["state_name"] == "Crashed"
    assert "nobody is signed in to Azure" in run["state"]["message"]
    assert "; sign in with `az login`, or set AZURE_TENANT_ID" in run["state"]["message"]


@pytest.mark.usefixtures("worker")
def test_a_run_is_a_job_that_executes_it(bed: Bed) -> None:
    run_id = bed.start({"experiment_name": "small-flows"})
    run = bed.ended(run_id)
    assert run["state_name"] == "Completed", (run["state"], bed.log_of(run_id))
    assert run["infrastructure_pid"] == job_of(run_id)
    assert bed.job_ended(job_of(run_id)) == "Completed"
    assert bed.emulator.job(job_of(run_id))["exp"] == "small-flows"
    assert {"Queued", "Preparing", "Starting"} & set(bed.states_of(run_id))  # each as far as a poll fell into it
    wait_until(lambda: "printed by the flow" in said(bed, run_id), "the log is copied")
    assert len([line for line in said(bed, run_id) if "logged by the flow" in line]) == 1


@pytest.mark.usefixtures("worker")
def test_a_flow_that_fails_gives_a_job_that_failed(bed: Bed) -> None:
    run_id = bed.start({"fail": True, "experiment_name": "failing"})
    run = bed.ended(run_id)
    assert run["state_name"] == "Failed", run["state"]
    assert "told to fail" in run["state"]["message"]
    assert bed.job_ended(job_of(run_id)) == "Failed"
    assert bed.emulator.job(job_of(run_id))["exp"] == "failing"
    assert bed.state_of(run_id) == "Failed"  # the flow's own word stands


@pytest.mark.usefixtures("worker")
def test_a_run_whose_job_dies_is_crashed_with_a_diagnosis(bed: Bed) -> None:
    run_id = bed.start(command="echo 'numpy: Cannot allocate memory'; exit 137")
    run = bed.ended(run_id)
    assert run["state_name"] == "Crashed"
    message = run["state"]["message"]
    assert "The job failed" in message
    assert "out of memory on a node" in message
    assert "https://ml.azure.com/" in message
    wait_until(lambda: "job log: numpy: Cannot allocate memory" in said(bed, run_id), "the log's end is shown")


@pytest.mark.usefixtures("worker")
def test_a_log_whose_address_has_expired_is_read_on(bed: Bed) -> None:
    go_on = bed.folder.parent / "address-expired"
    line = f"echo before; until test -e {go_on}; do sleep 0.1; done; echo after; sleep 300"
    run_id = bed.start(command=line, cancel_grace_s=0)
    wait_until(lambda: "before" in said(bed, run_id), "the log is copied")
    begin = len(bed.emulator.requests())
    bed.emulator.control("expire_addresses")
    go_on.touch()
    wait_until(lambda: "after" in said(bed, run_id), "the log is copied on")
    reads = [one for one in bed.emulator.requests()[begin:] if one["path"].endswith("/std_log.txt")]
    assert 403 in {one["status"] for one in reads if job_of(run_id) in one["path"]}
    assert said(bed, run_id).count("before") == 1
    assert not [one for one in said(bed, run_id) if "could not be asked" in one]
    bed.cancel(run_id)
    assert bed.job_ended(job_of(run_id)) == "Canceled"


@pytest.mark.usefixtures("worker")
def test_a_retry_of_a_run_whose_flow_never_began_is_a_new_job(bed: Bed) -> None:
    mended = bed.folder.parent / "mended"
    run_id = bed.start(command=f"test -e {mended} && exec python -m plato_core.aml.entry")
    assert bed.ended(run_id)["state_name"] == "Crashed"
    mended.touch()
    bed.emulator.fault(match="PUT .*/jobs/pf-", status=409, handled=True)  # the job is there, the answer says no
    bed.retry(run_id)
    wait_until(lambda: bed.state_of(run_id) != "Crashed", "it is tried again")
    assert bed.ended(run_id)["state_name"] == "Completed"
    assert bed.run(run_id)["infrastructure_pid"] == job_of(run_id, 1)
    assert bed.job_ended(job_of(run_id)) == "Failed"
    assert bed.job_ended(job_of(run_id, 1)) == "Completed"
    asked = [one for one in bed.emulator.requests() if one["m"] == "PUT" and job_of(run_id, 1) in one["path"]]
    assert [one["status"] for one in asked] == [409]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"compute": "no-such"}, "compute: workspace ws-emu has no compute 'no-such'; it has: "),
        ({"environment": "plato:9"}, "environment: workspace ws-emu has no environment 'plato:9'; it has none of that"),
        (
            {"environment": "plato@latest"},
            "`az ml environment create --file deployments/aml/environment.yaml` makes one",
        ),
        (
            {"subscription_id": "s-1", "resource_group": "rg-emu", "workspace": "elsewhere"},
            "Azure ML workspace elsewhere (resource group rg-emu, subscription s-1) does not exist, or not for whoever "
            "is signed in; look at its config.json",
        ),
        ({"instance_count": 400}, "instance_count: 400 nodes, but compute 'cpu-cluster' grows to"),
        ({"code": "/no/such"}, "code: there is no folder '/no/such'"),
        ({"env": {"PREFECT_API_KEY": "pnu_123"}}, "env.PREFECT_API_KEY: it would stand in the job's settings"),
        ({"api_url": None}, "leads to this machine only, and the job runs on another; set api_url"),
    ],
)
def test_a_run_that_cannot_become_a_job_says_why(bed: Bed, variables: dict[str, Any], message: str) -> None:
    before = bed.emulator.jobs()
    run_id = bed.start(**variables)
    run = bed.ended(run_id)
    assert run["state_name"] == "Crashed"
    assert message in run["state"]["message"]
    assert "Traceback" not in str(bed.log_of(run_id))
    assert bed.emulator.jobs() == before


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("variables", "cause", "remedy"),
    [
        ({"compute": "no-quota"}, "quota or capacity. The cluster no-quota", "Ask for fewer nodes (instance_count)"),
        (
            {"api_url": f"http://127.0.0.1:{CLOSED}/api"},
            f"no route from the cluster to the Prefect API at http://127.0.0.1:{CLOSED}/api",
            "api_url",
        ),
    ],
)
def test_what_only_a_job_can_find_is_in_the_state_of_its_run(
    bed: Bed, variables: dict[str, Any], cause: str, remedy: str
) -> None:
    run_id = bed.start(**variables)
    run = bed.ended(run_id)
    assert run["state_name"] == "Crashed", run["state"]
    [said_so] = [part for part in run["state"]["message"].split("Likely cause: ")[1:] if cause in part]
    assert remedy in said_so
    assert bed.job_ended(job_of(run_id)) == "Failed"


@pytest.mark.usefixtures("worker")
def test_a_secret_that_is_not_the_right_one_any_more_crashes_a_run_before_its_job(bed: Bed) -> None:
    before = bed.emulator.jobs()
    bed.emulator.control("client_secret", value="another-one")
    try:
        run = bed.ended(bed.start())
    finally:
        bed.emulator.control("client_secret", value=bed.emulator.client_secret)
    assert run["state_name"] == "Crashed"
    assert "AADSTS7000215" in run["state"]["message"]
    assert "; sign in with `az login`, or set AZURE_TENANT_ID" in run["state"]["message"]
    assert bed.emulator.jobs() == before


@pytest.mark.usefixtures("worker")
def test_a_job_that_waits_is_cancelled_with_its_run(bed: Bed) -> None:
    bed.emulator.control("hold")
    try:
        run_id = bed.start()
        wait_until(lambda: bed.state_of(run_id) == "Queued", "the job waits")
        bed.cancel(run_id)
        assert bed.ended(run_id)["state_name"] == "Cancelled"
        assert bed.job_ended(job_of(run_id)) == "Canceled"
    finally:
        bed.emulator.control("release")


@pytest.mark.usefixtures("worker")
def test_a_run_that_is_cancelled_while_it_runs_ends_in_order(bed: Bed) -> None:
    run_id = bed.start({"seconds": 300})
    wait_until(lambda: bed.state_of(run_id) == "Running", "the flow runs")
    bed.cancel(run_id)
    assert bed.ended(run_id)["state_name"] == "Cancelled"
    assert bed.job_ended(job_of(run_id)) == "Failed"  # its exit code tells; nobody had to cancel it
    assert not [one for one in bed.emulator.requests() if one["path"].endswith(f"{job_of(run_id)}/cancel")]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("notice_s", [pytest.param(30.0, marks=thorough), pytest.param(0.0, marks=SOAKED)])
def test_a_job_taken_from_its_node_waits_and_starts_again(bed: Bed, notice_s: float) -> None:
    run_id = bed.start({"seconds": 5})
    wait_until(lambda: "printed by the flow" in said(bed, run_id), "the flow runs")
    bed.emulator.control("hold")
    try:
        bed.emulator.control("preempt", job=job_of(run_id), notice_s=notice_s)
        wait_until(lambda: bed.state_of(run_id) == "Queued", "the run is known to wait")
    finally:
        bed.emulator.control("release")
    assert bed.ended(run_id)["state_name"] == "Completed"
    assert bed.job_ended(job_of(run_id)) == "Completed"


@thorough
@pytest.mark.usefixtures("worker")
def test_a_run_whose_endpoints_fail_is_one_job_and_nothing_is_double(bed: Bed) -> None:
    """One of each class, each at an endpoint of its own; `make soak` has all classes at all endpoints."""
    seed = int(os.environ.get("PLATO_SEED", "20261123"))
    chance = random.Random(seed)
    faulty = Faulty(bed)
    endpoints = dict(zip(chance.sample(sorted(OF_A_JOB), len(CLASSES)), CLASSES, strict=True))
    for name in list(endpoints):  # these clients wait for long; the tracking's time-out is set to 5 s
        if CLASSES[endpoints[name]].get("silent"):
            soon = chance.choice([one for one in sorted(OF_A_JOB) if "/mlflow/" in one and one not in endpoints])
            endpoints[soon] = endpoints.pop(name)
    print(f"seed {seed}: {endpoints}")
    bed.emulator.control("clear_faults")
    for match, kind in endpoints.items():
        bed.emulator.fault(match, **CLASSES[kind])
    # Longer than the clients and the retries of the task that opens the parent run go on by themselves.
    bed.emulator.fault(r"^POST .*/runs/set-tag$", status=503, times=8)
    faulty.job()
    assert not faulty.unmet()


@thorough
def test_a_sweep_from_home_whose_endpoints_fail_is_one_job_and_nothing_is_double(bed: Bed) -> None:
    """One class at some endpoints; `make soak` has all classes at all endpoints, and a cancel and a second client."""
    seed = int(os.environ.get("PLATO_SEED", "20261123"))
    chance = random.Random(seed)
    # Where these clients wait for long, a silent service takes too long for here.
    kind = chance.choice([name for name, fault in CLASSES.items() if not fault.get("silent")])
    endpoints = chance.sample(sorted(OF_HOME), 4)
    print(f"seed {seed}: {kind} at {endpoints}")
    faulty = Faulty(bed)
    faulty.spoil(dict.fromkeys(endpoints, 0), kind)
    # No client asks again by itself then: the task that opens the parent run does, and there is one of that too.
    bed.emulator.fault(r"^PUT .*/config\.yaml$", **CLASSES["429"])
    bed.emulator.fault(r"^POST .*/runs/set-tag$", **CLASSES["truncated"])  # likewise the job, when it begins
    faulty.home.job()
    assert not faulty.unmet()


@thorough
def test_ctrl_c_at_home_cancels_the_job_and_the_next_sends_what_it_could_not(bed: Bed) -> None:
    faulty = Faulty(bed)
    faulty.spoil({"^PUT .*/ExperimentRun/.*checkpoint_[^/]+/.*$": 0}, "silent after")
    sweep = faulty.home.cancel_and_go_on()
    assert not faulty.unmet()
    kept = r"not in the tracking store yet: \d+ entries, kept with the sweep's files and sent when the sweep goes on"
    assert re.search(kept, sweep.commands[0].said)


@thorough
@pytest.mark.usefixtures("worker")
def test_a_service_that_throttles_for_long_is_a_line_in_the_log(bed: Bed) -> None:
    run_id = bed.start({"seconds": 5})
    wait_until(lambda: "printed by the flow" in said(bed, run_id), "the log is copied")
    refused = len(bed.emulator.requests())
    bed.emulator.fault(".*", status=429, times=10**6, headers={"Retry-After": "1"})
    try:
        wait_until(lambda: bed.run(run_id)["state_type"] == "COMPLETED", "the flow ends, which needs no Azure")
        wait_until(lambda: any("could not be asked" in line for line in said(bed, run_id)), "it is said")
        wait_until(lambda: len(bed.emulator.requests()) - refused > 12, "it is asked again")
    finally:
        bed.emulator.control("clear_faults")
    wait_until(lambda: f"Job {job_of(run_id)} is Completed" in said(bed, run_id), "the end is seen")
    lines = [line for line in said(bed, run_id) if "could not be asked" in line or "answers again" in line]
    assert len(lines) == 2, lines
    assert bed.state_of(run_id) == "Completed"


@thorough
def test_many_jobs_are_asked_after_once_a_poll_each_in_little_memory(bed: Bed, worker: psutil.Process) -> None:
    jobs, polls = 6, 6
    bed.emulator.control("compute", name="many-nodes", vm_size="Standard_DS4_v2", max_nodes=jobs)
    lines = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.5; done"
    runs: list[str] = []
    for _ in range(jobs):  # one after the other: a server on SQLite keeps many at once waiting
        runs.append(bed.start(command=lines, compute="many-nodes", poll_interval_s=1, cancel_grace_s=0))
        wait_until(lambda: job_of(runs[-1]) in bed.emulator.jobs(), "it is submitted")
    names = [job_of(run_id) for run_id in runs]

    def counts() -> Counter[str]:
        """How often the jobs were asked after, and what else was asked for."""
        found: Counter[str] = Counter()
        for one in bed.emulator.requests()[begin:]:
            found["state" if one["path"].endswith(tuple(f"/jobs/{name}" for name in names)) else one["path"]] += 1
        return found

    try:
        wait_until(lambda: all("line 3" in said(bed, run_id) for run_id in runs), "all logs are copied")
        begin, memory = len(bed.emulator.requests()), worker.memory_info().rss
        wait_until(lambda: counts()["state"] >= jobs * polls, "some polls")
        assert worker.memory_info().rss - memory < GROWS_BY
        found = counts()
        logs = sum(count for path, count in found.items() if path.endswith("/std_log.txt"))
        others = found.total() - found["state"] - logs
        assert logs <= found["state"] + jobs  # one read of the log with each poll
        assert others <= 2 * jobs, found  # addresses of logs, tokens: not with each poll
    finally:
        for run_id in runs:
            bed.cancel(run_id)
    for name in names:
        assert bed.job_ended(name) == "Canceled"


@soaked
def test_a_log_of_gigabytes_costs_the_worker_no_memory_and_hides_no_end(bed: Bed, worker: psutil.Process) -> None:
    line = "a line of a log that is long"
    # 3 GB, while the worker looks; and the end of the log, which is not among what it copies.
    long = f"yes '{line}' | head -c 3000000000; sleep 5; echo 'numpy: Cannot allocate memory'; exit 137"
    run_id = bed.start(command=long, log_lines=100)
    wait_until(lambda: line in said(bed, run_id), "the log is copied")
    held, most = worker.memory_info().rss, 0

    def ended() -> bool:
        nonlocal most
        most = max(most, worker.memory_info().rss)
        return bed.run(run_id)["state_name"] == "Crashed"

    wait_until(ended, "the end is seen", 300.0)
    print(f"{held / 1e6:.1f} MB, and at most {most / 1e6:.1f} MB")
    assert most - held < GROWS_BY
    assert "out of memory on a node" in bed.run(run_id)["state"]["message"]
    found = said(bed, run_id)
    assert found.count(line) == 100
    assert sum(one.startswith("Further lines of the job's log are in Studio") for one in found) == 1


def test_no_secret_is_anywhere_and_nobody_else_was_called(bed: Bed) -> None:
    """The last test of this file: it searches what all before it have left."""
    hidden = [PASSWORD, base64.b64encode(f"admin:{PASSWORD}".encode()).decode(), "emulated-client-secret"]
    searched = 0
    for path in bed.folder.parent.rglob("*"):
        if path.is_file() and path.name != "prefect.db-wal":
            searched += 1
            content = path.read_bytes()
            assert not [value for value in hidden if value.encode() in content], path
    assert searched > 20
    own = "169.254.169.254"  # where an identity of this machine's own is looked for, if nobody has signed in
    assert set(bed.emulator.refused()) <= {own}


def test_a_workspace_is_found_where_the_sdk_finds_it(tmp_path: Path) -> None:
    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    where = {"subscription_id": "s-1", "resource_group": "group"}
    for place, name in ((".azureml", "above"), ("below", "here")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(json.dumps(where | {"workspace_name": name}))
    found = Workspace.find(tmp_path / "below")
    assert found is not None
    assert found.name == MLClient.from_config(DefaultAzureCredential(), path=tmp_path / "below").workspace_name


def _copied(bed: Bed, run_id: str) -> int:
    return sum(entry["name"] == "azure-ml.job" for entry in bed.log_of(run_id))


def _noted(bed: Bed, run_id: str) -> int:
    return int(bed.run(run_id)["labels"].get(LOG_LABEL, "0").rpartition(":")[2])


def said(bed: Bed, run_id: str) -> list[str]:
    return [entry["message"] for entry in bed.log_of(run_id)]

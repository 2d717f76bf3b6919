"""`plato up` and `plato down`: real servers and a real worker on free ports, shared by the tests below in turn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import loopback
import psutil
import pytest
from small_project import small_project
from stack import Stack, new_stack
from thorough import thorough
from waiting import wait_until

from plato_core.stack.processes import marked
from plato_core.stack.settings import MLFLOW, PREFECT, WORKER

FOREIGN = {
    "PREFECT_API_URL": "https://api.prefect.cloud/api/accounts/1/workspaces/2",
    "PREFECT_API_KEY": "pnu_of_another_server",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nowhere/prefect.db",
    "MLFLOW_TRACKING_URI": "https://elsewhere.example",
    "PLATO_TRACKING_URI": "https://elsewhere.example",
    "PLATO_RAY_ADDRESS": "ray://elsewhere.example:10001",
    "RAY_ADDRESS": "ray://elsewhere.example:10001",
    "HTTP_PROXY": "http://127.0.0.1:9",
}


ADDED = """\
    tags: [again]
    schedules:
      - {slug: yearly, cron: "0 0 1 1 *", timezone: UTC, active: true}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, str]]:
    """A stack, and what `plato up` said; its shell is set up for other servers, which are to have no say."""
    folder = tmp_path_factory.mktemp("stack")
    stack = new_stack(folder, small_project(folder), PLATO_STACK_CONCURRENCY_LIMIT="3", **FOREIGN)
    try:
        yield stack, stack.up()
    finally:
        stack.close()


@pytest.fixture
def stack(up: tuple[Stack, str]) -> Stack:
    return up[0]


def get(url: str, **headers: str) -> httpx.Response:
    return loopback.request("GET", url, headers=headers, timeout=30.0, follow_redirects=True)


def answers(url: str) -> bool:
    try:
        return get(url).is_success
    except httpx.HTTPError:
        return False


def run_small(stack: Stack, **parameters: float) -> str:
    """Asks for a run of the deployment, and returns its id."""
    deployment = stack.request("GET", "/deployments/name/small/local")
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return stack.request("POST", f"/deployments/{deployment['id']}/create_flow_run", body)["id"]


def state_of(stack: Stack, run: str) -> str:
    return stack.request("GET", f"/flow_runs/{run}")["state"]["type"]


def said(stack: Stack, run: str) -> str:
    path = stack.project / f"{run}.said"
    return path.read_text() if path.exists() else ""


def worker_is_online(stack: Stack) -> bool:
    workers = stack.request("POST", "/work_pools/local/workers/filter", {})
    return [worker["status"] for worker in workers] == ["ONLINE"]


def members(stack: Stack) -> list[psutil.Process]:
    return [process for part in (PREFECT, MLFLOW, WORKER) for process in marked(part, stack.folder)]


def test_up_prints_the_addresses_and_they_answer(up: tuple[Stack, str]) -> None:
    stack, printed = up
    assert f"Prefect     {stack.prefect_url}\n" in printed
    assert f"MLflow      {stack.mlflow_url}\n" in printed
    assert f"export PREFECT_API_URL={stack.api_url} MLFLOW_TRACKING_URI={stack.mlflow_url}\n" in printed
    assert "<title>Prefect" in get(stack.prefect_url).text
    assert get(f"{stack.api_url}/health").json() is True
    assert get(f"{stack.mlflow_url}/health").text == "OK"
    assert "<title>MLflow</title>" in get(stack.mlflow_url).text
    assert get(f"http://localhost:{stack.mlflow_port}/health").text == "OK"
    assert get(f"{stack.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example").is_error


def test_the_ui_calls_the_api_at_its_own_port(stack: Stack) -> None:
    assert get(f"{stack.prefect_url}/ui-settings").json()["api_url"] == stack.api_url


def test_the_work_pool_has_a_worker_and_the_deployment(stack: Stack) -> None:
    pool = stack.request("GET", "/work_pools/local")
    assert pool["type"] == "process"
    assert pool["description"]
    assert pool["concurrency_limit"] == 3
    assert "working_dir" in pool["base_job_template"]["variables"]["properties"]
    assert worker_is_online(stack)
    deployment = stack.request("GET", "/deployments/name/small/local")
    assert deployment["work_pool_name"] == "local"
    assert deployment["job_variables"]["working_dir"] == str(stack.project)


def test_nothing_listens_beyond_this_machine_or_speaks_to_another(stack: Stack) -> None:
    connections = [c for process in members(stack) for c in process.net_connections(kind="inet")]
    listening = {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    assert {("127.0.0.1", stack.prefect_port), ("127.0.0.1", stack.mlflow_port)} <= listening
    addresses = {c.laddr.ip for c in connections} | {c.raddr.ip for c in connections if c.raddr}
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_nothing_is_reported_to_the_makers_and_leases_survive_a_restart(stack: Stack) -> None:
    settings = stack.request("GET", "/admin/settings")
    assert settings["server"]["analytics_enabled"] is False
    assert settings["server"]["concurrency"]["lease_storage"].endswith(".filesystem")
    assert Path(settings["home"]) == stack.folder / "prefect"
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    for process in members(stack):
        assert process.environ()[MLFLOW_DISABLE_TELEMETRY.name] == "true"
        assert process.environ()["DO_NOT_TRACK"] == "true"


def test_the_shells_own_servers_and_keys_reach_no_part(stack: Stack) -> None:
    for process in members(stack):
        given = "\n".join(f"{name}={value}" for name, value in process.environ().items())
        assert "pnu_of_another_server" not in given
        assert "prefect.cloud" not in given
        assert "elsewhere.example" not in given
        assert "/nowhere/" not in given


def test_a_run_is_tracked_by_this_mlflow_server(stack: Stack) -> None:
    run = run_small(stack, seconds=0.0)
    wait_until(lambda: state_of(stack, run) == "COMPLETED", "the run is done")
    assert said(stack, run) == stack.mlflow_url


def test_a_second_up_starts_nothing_new_and_deploys_again(stack: Stack) -> None:
    before = stack.state
    (stack.project / "prefect.yaml").write_text(
        (stack.project / "prefect.yaml").read_text().replace("    entrypoint", f"{ADDED}    entrypoint")
    )
    printed = stack.up()
    assert "is up already" in printed
    assert stack.state == before
    assert stack.request("GET", "/deployments/name/small/local")["tags"] == ["again"]


def test_a_schedule_that_was_paused_on_the_server_stays_so_when_deployed_again(stack: Stack) -> None:
    deployment = stack.request("GET", "/deployments/name/small/local")
    [schedule] = deployment["schedules"]
    assert schedule["active"]
    stack.request("PATCH", f"/deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": False})
    assert "at 0 0 1 1 * UTC (stays paused)" in stack.up()
    [schedule] = stack.request("GET", "/deployments/name/small/local")["schedules"]
    assert schedule["active"] is False


def test_up_with_another_port_is_told_of_the_one_in_use(stack: Stack) -> None:
    other = Stack(stack.project, stack.folder, stack.prefect_port + 1, stack.mlflow_port)
    done = other.plato("up")
    assert done.returncode == 2
    assert f"runs with port {stack.prefect_port}" in done.stderr
    assert "plato down" in done.stderr


@thorough
def test_parts_that_are_killed_come_back_and_a_run_goes_on_meanwhile(stack: Stack) -> None:
    going_on = run_small(stack, seconds=12.0)
    wait_until(lambda: said(stack, going_on), "the run has begun")
    before = stack.state.parts
    for recorded in before.values():
        process = recorded.find()
        assert process is not None
        process.kill()  # of MLflow only the parent: its own child keeps the port until it is ended too

    def new_ones() -> bool:
        parts = stack.state.parts
        return all(part in parts and parts[part] != before[part] and parts[part].find() for part in before)

    wait_until(new_ones, "the parts are started again")
    wait_until(lambda: answers(f"{stack.mlflow_url}/health"), "MLflow answers again")
    wait_until(lambda: state_of(stack, going_on) == "COMPLETED", "the run has come to its end without its worker")
    run = run_small(stack, seconds=0.0)
    wait_until(lambda: state_of(stack, run) == "COMPLETED", "the new worker runs it")


def test_down_ends_runs_in_order_and_leaves_nothing_and_up_finds_all_again(stack: Stack) -> None:
    stack.request("PATCH", "/work_pools/local", {"concurrency_limit": 2})
    # The worker, which asks for runs each 5 s, has a place for the next one while it waits for the second to end.
    runs = [run_small(stack, seconds=600.0), run_small(stack, seconds=600.0, last_words_s=8.0)]
    wait_until(lambda: all(said(stack, run) for run in runs), "the runs have begun")
    next_one = run_small(stack)
    supervisor = stack.state.supervisor
    printed = stack.down()
    assert "ending      2 flow runs," in printed
    assert [said(stack, run) for run in runs] == ["ended in order"] * 2
    assert said(stack, next_one) == ""
    assert stack.processes() == []
    assert supervisor.find() is None
    assert not answers(stack.mlflow_url)
    assert "nothing" in stack.down()
    stack.up()
    assert [state_of(stack, run) for run in runs] == ["CANCELLED"] * 2
    assert stack.request("GET", "/work_pools/local")["is_paused"] is False
    wait_until(lambda: state_of(stack, next_one) == "COMPLETED", "what had not begun is run now")
    assert stack.request("GET", "/deployments/name/small/local")["tags"] == ["again"]


def test_up_takes_over_from_a_supervisor_that_was_killed(stack: Stack) -> None:
    before = stack.state
    supervisor = before.supervisor.find()
    assert supervisor is not None
    supervisor.kill()
    stack.up()
    after = stack.state
    assert after.parts == before.parts
    assert after.supervisor != before.supervisor
    assert after.supervisor.find() is not None


@thorough
def test_a_run_that_ended_with_the_machine_is_not_shown_as_running(stack: Stack) -> None:
    run = run_small(stack, seconds=600.0)
    wait_until(lambda: said(stack, run), "the run has begun")
    supervisor = stack.state.supervisor.find()
    assert supervisor is not None
    for process in [supervisor, *members(stack)]:
        process.kill()
    wait_until(lambda: not stack.processes(), "all are gone")
    stack.up()
    assert state_of(stack, run) == "CRASHED"


def test_down_finds_the_parts_of_a_supervisor_that_was_killed(stack: Stack) -> None:
    supervisor = stack.state.supervisor.find()
    assert supervisor is not None
    supervisor.kill()
    stack.down()
    assert stack.processes() == []


def test_a_server_that_cannot_start_is_named_with_its_log(tmp_path: Path) -> None:
    uri = "postgresql+nothing://me:pw-geheim@host/x"
    stack = new_stack(tmp_path, small_project(tmp_path), PLATO_STACK_MLFLOW_STORE_URI=uri)
    try:
        done = stack.plato("up")
        assert done.returncode == 1, done.stdout
        assert re.search(r"error: the MLflow server does not start \(.*\); its log is .*/mlflow\.log", done.stderr)
        assert stack.processes() == []
        assert "pw-geheim" not in done.stdout + done.stderr
        assert "pw-geheim" not in "".join(path.read_text() for path in stack.folder.rglob("*.log"))
    finally:
        stack.close()

"""The deployments on a stack of their own: applied, read back, run from the pool, fired by a schedule."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from mlflow.entities import Run
from stack import Stack, project_copy, running_stack
from thorough import thorough
from waiting import wait_until

from plato_core.config import SweepConfig
from plato_core.config_form import form_values
from plato_core.stack.parts import PREFECT

ITERATIONS = 30
CRON = 'cron: "0 2 * * *"'
# So long in all: the schedule, the run's start, the sweep beside whatever else this machine does.
FIRED_S, RUN_S = 240.0, 240.0
# Lines of a run's log that met no server are sent again after 2, 4, 8, 16 and 32 s (Prefect's own waits,
# with jitter): those of the run's end may come after its last state.
LOG_S = 90.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose nightly sweep is a short one."""
    folder = tmp_path_factory.mktemp("deployments")
    project = project_copy(folder)
    rewrite(
        project,
        "          preset: nightly\n",
        "          preset: nightly\n          num_tune_samples: 2\n"
        f"          max_iterations: {ITERATIONS}\n          experiment_name: nightly\n",
    )
    with running_stack(folder, project) as stack:
        yield stack


@pytest.fixture(scope="module")
def soon(stack: Stack) -> datetime:
    """A full minute, one to two minutes ahead, in UTC, for which the nightly sweep is now scheduled."""
    soon = (datetime.now(UTC) + timedelta(seconds=120)).replace(second=0, microsecond=0)
    rewrite(stack.project, CRON, f'cron: "{soon.minute} {soon.hour} * * *"')
    done = stack.plato("deploy")
    assert done.returncode == 0, done.stderr
    return soon


def rewrite(project: Path, old: str, new: str) -> None:
    """Edits the project's `prefect.yaml`, as a user would."""
    text = (project / "prefect.yaml").read_text()
    assert old in text
    (project / "prefect.yaml").write_text(text.replace(old, new))


def deployment(stack: Stack, name: str) -> dict[str, Any]:
    return stack.request("GET", f"/deployments/name/sweep/{name}")


def runs_of(stack: Stack, name: str, *states: str) -> list[dict[str, Any]]:
    """The flow runs of a deployment in some state types, the earliest first."""
    query = {
        "deployments": {"name": {"any_": [name]}},
        "flow_runs": {"state": {"type": {"any_": list(states)}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    return stack.request("POST", "/flow_runs/filter", query)


def tasks_of(stack: Stack, flow_run_id: str) -> dict[str, str]:
    """Names of the flow run's tasks and their states."""
    tasks = stack.request("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    return {task["name"]: task["state_name"] for task in tasks}


def logged(stack: Stack, flow_run_id: str) -> list[str]:
    query = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    return [entry["message"] for entry in stack.request("POST", "/logs/filter", query)]


def artifacts_of(stack: Stack, flow_run_id: str) -> dict[str, dict[str, Any]]:
    found = stack.request("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}})
    by_key = {artifact["key"]: artifact for artifact in found}
    assert len(by_key) == len(found)  # updated in place, however often
    return by_key


def children(stack: Stack, sweep_tag: str) -> tuple[Run, list[Run]]:
    """The parent run and the trials of a sweep, from the stack's MLflow server."""
    client = mlflow.MlflowClient(stack.mlflow_url)
    experiments: list[str] = [experiment.experiment_id for experiment in client.search_experiments()]
    sweep_id = sweep_tag.removeprefix("sweep:")
    [parent] = client.search_runs(experiments, f"tags.`plato.sweep_id` = '{sweep_id}' and tags.`plato.kind` = 'sweep'")
    trials = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return parent, list(trials)


def sweep_tag(run: dict[str, Any]) -> str:
    [tag] = [tag for tag in run["tags"] if tag.startswith("sweep:")]
    return tag


@pytest.mark.parametrize("name", ["local", "nightly"])
def test_a_deployment_reads_back_as_it_is_written(stack: Stack, name: str) -> None:
    found = deployment(stack, name)
    own = {"num_tune_samples": 2, "max_iterations": ITERATIONS, "experiment_name": "nightly"}
    settings = {"preset": "test-local"} if name == "local" else {"preset": "nightly", **own}
    assert found["parameters"] == form_values(**settings)
    assert found["entrypoint"] == "flows/sweep_and_fetch.py:sweep"
    assert found["tags"] == ["plato", name]
    assert found["work_pool_name"] == "local"
    assert found["enforce_parameter_schema"]
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert found["job_variables"]["working_dir"] == str(stack.project)
    assert found["job_variables"]["env"]["DO_NOT_TRACK"] == "1"
    assert "set_working_directory" in str(found["pull_steps"])  # and no folder of the machine that deployed
    schedules = [(schedule["slug"], schedule["schedule"], schedule["active"]) for schedule in found["schedules"]]
    cron = {"cron": "0 2 * * *", "timezone": "UTC", "day_or": True}
    assert schedules == ([("nightly", cron, True)] if name == "nightly" else [])


def test_the_deployments_for_azure_ml_have_a_pool_that_waits_for_a_worker(stack: Stack) -> None:
    pool = stack.request("GET", "/work_pools/aml")
    assert pool["type"] == "azure-ml"
    assert pool["base_job_template"]["variables"]["properties"]["compute"]["title"] == "Compute"
    for name, schedules in (("aml", []), ("nightly-aml", [("nightly-aml", False)])):
        found = deployment(stack, name)
        assert found["work_pool_name"] == "aml"
        assert found["entrypoint"] == "flows/sweep_and_fetch.py:sweep"
        assert [(schedule["slug"], schedule["active"]) for schedule in found["schedules"]] == schedules
    assert stack.request("POST", "/work_pools/aml/workers/filter", {}) == []


def test_the_form_has_the_models_titles_descriptions_bounds_and_defaults(stack: Stack) -> None:
    form = deployment(stack, "local")["parameter_openapi_schema"]["properties"]
    assert set(form) == set(SweepConfig.model_fields)
    model = SweepConfig.model_json_schema()["properties"]
    same = ("title", "description", "enum", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength")
    for name, field in form.items():
        assert [field.get(key) for key in same] == [model[name].get(key) for key in same], name
        assert field["default"] == model[name].get("default", {}), name
        bounds = [option for option in model[name].get("anyOf", ()) if "$ref" not in option]
        assert all(option in field["anyOf"] for option in bounds), name


def test_deploying_again_changes_nothing(stack: Stack) -> None:
    before = {name: deployment(stack, name) for name in ("local", "nightly")}
    assert stack.plato("deploy").returncode == 0
    for name, found in before.items():
        again = deployment(stack, name)
        assert again["id"] == found["id"]
        assert len(again["schedules"]) == len(found["schedules"])
        assert again["parameters"] == found["parameters"]


def test_a_missing_work_pool_is_named_with_its_command(stack: Stack, tmp_path: Path) -> None:
    text = (stack.project / "prefect.yaml").read_text()
    text = text.replace("    name: local\n    job_variables", "    name: elsewhere\n    job_variables")
    (tmp_path / "prefect.yaml").write_text(text)
    other = Stack(tmp_path, stack.folder, stack.prefect_port, stack.mlflow_port)
    done = other.plato("deploy")
    assert done.returncode == 2
    assert done.stderr == (
        "error: work pool 'elsewhere' does not exist; make it with: prefect work-pool create elsewhere --type process\n"
    )


def test_a_run_with_other_parameters_completes_and_is_found_by_its_name_and_tags(stack: Stack) -> None:
    done = stack.prefect(
        "deployment", "run", "sweep/local", "--watch",
        # An episode of Acrobot has up to 500 steps, an iteration 64 in each environment.
        "-p", "num_tune_samples=2", "-p", "env_name=Acrobot-v1", "-p", "max_iterations=9",
        timeout_s=RUN_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = runs_of(stack, "local", "COMPLETED")
    assert run["name"].startswith("pbt_ppo Acrobot-v1 x2 #")
    assert {"plato", "local", "Acrobot-v1", "PPO"} <= set(run["tags"])
    sweep_id = sweep_tag(run).removeprefix("sweep:")
    wait_until(lambda: len(tasks_of(stack, run["id"])) >= 5, "the last task's state")
    tasks = tasks_of(stack, run["id"])
    assert set(tasks.values()) == {"Completed"}
    assert {f"open the parent run of {sweep_id}", "train 2 x PPO on Acrobot-v1"} <= set(tasks)
    assert set(artifacts_of(stack, run["id"])) == {
        f"pbt-ppo-{kind}" for kind in ("progress", "leaderboard", "mlflow", "summary")
    }
    parent, trials = children(stack, sweep_tag(run))
    assert [parent.info.status, *(trial.info.status for trial in trials)] == ["FINISHED"] * 3
    assert "stop_reward" not in parent.data.params  # CartPole's 475 is not Acrobot's
    assert Path(stack.project, "model_checkpoints").is_dir()


def test_a_mistake_in_the_parameters_is_one_line_and_leaves_nothing(stack: Stack) -> None:
    before = sorted(stack.project.rglob(".plato/sweeps/*"))
    refused = stack.prefect("deployment", "run", "sweep/local", "-p", "num_tune_samples=0")
    assert refused.returncode != 0
    assert "0 is less than the minimum of 1" in refused.stdout + refused.stderr
    done = stack.prefect("deployment", "run", "sweep/local", "--watch", "-p", "env_name=Cartpole-v1", timeout_s=RUN_S)
    assert done.returncode != 0
    [run] = runs_of(stack, "local", "FAILED")
    assert run["state"]["message"].startswith("env_name: there is no environment 'Cartpole-v1'")
    assert tasks_of(stack, run["id"]) == {}
    assert sorted(stack.project.rglob(".plato/sweeps/*")) == before


@thorough
def test_the_schedule_fires_and_a_restart_of_the_server_loses_nothing(stack: Stack, soon: datetime) -> None:
    wait_until(lambda: runs_of(stack, "nightly", "RUNNING"), "the scheduled run begins by itself", FIRED_S)
    [run] = runs_of(stack, "nightly", "RUNNING")
    assert datetime.fromisoformat(run["expected_start_time"]) == soon
    assert run["auto_scheduled"]
    wait_until(lambda: _trained(stack, run["id"]), "the trials train")
    recorded = stack.state.parts[PREFECT]
    os.kill(recorded.pid, signal.SIGKILL)
    wait_until(lambda: stack.state.parts[PREFECT].pid != recorded.pid, "the server is started again")
    wait_until(lambda: _answers(stack), "the server answers again")
    wait_until(lambda: not runs_of(stack, "nightly", "RUNNING"), "the run ends", RUN_S)
    [run] = [found for found in runs_of(stack, "nightly", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
    assert run["state_name"] == "Completed", run["state"]["message"]
    wait_until(lambda: set(tasks_of(stack, run["id"]).values()) == {"Completed"}, "every task's last state")
    assert "prune old sweeps in sweeps" in tasks_of(stack, run["id"])
    parent, trials = children(stack, sweep_tag(run))
    client = mlflow.MlflowClient(stack.mlflow_url)
    assert parent.info.status == "FINISHED"
    assert len(trials) == 2
    for trial in trials:
        steps = [point.step for point in client.get_metric_history(trial.info.run_id, "training_iteration")]
        assert steps == list(range(1, len(steps) + 1))
        assert trial.info.status == "FINISHED"
    artifacts = artifacts_of(stack, run["id"])
    assert set(artifacts) == {f"nightly-{kind}" for kind in ("progress", "leaderboard", "mlflow", "summary")}
    assert artifacts["nightly-progress"]["data"] == 100
    wait_until(lambda: _finished_lines(stack, run["id"]) == 2, "the log tells each trial's end", LOG_S)
    tomorrow = runs_of(stack, "nightly", "SCHEDULED")
    assert datetime.fromisoformat(tomorrow[0]["expected_start_time"]) == soon + timedelta(days=1)
    wait_until(
        lambda: deployment(stack, "nightly")["global_concurrency_limit"]["active_slots"] == 0,
        "the place under the limit is free again",
        60,
    )


def _trained(stack: Stack, flow_run_id: str) -> bool:
    """Whether each of two trials has had some results: the leaderboard says so."""
    board = next((a for key, a in artifacts_of(stack, flow_run_id).items() if key.endswith("leaderboard")), None)
    rows = json.loads(board["data"]) if board else []
    return len(rows) == 2 and all(int(row["iteration"]) >= 2 for row in rows)


def _finished_lines(stack: Stack, flow_run_id: str) -> int:
    return sum("finished at iteration" in message for message in logged(stack, flow_run_id))


def _answers(stack: Stack) -> bool:
    try:
        return bool(stack.request("GET", "/health"))
    except httpx.HTTPError:
        time.sleep(0.2)
        return False

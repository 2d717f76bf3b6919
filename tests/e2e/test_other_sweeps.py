"""Other algorithms and environments, a real tracking server, a real Prefect server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prefect_api import ask
from product import Product, Script, Server, free_port, mlflow_server
from store import tracked
from thorough import SOAKED, soaked, thorough

from plato_core.config import SweepConfig
from plato_core.manifest import read_manifest, verify
from plato_core.training.metrics import CONTRACT_METRICS

# An iteration lasts longer than an episode, so that the return is known.
LONG_ITERATIONS = """\
hyperparameters:
  train_batch_size: 2400
  sgd_minibatch_size: 1200
  num_sgd_iter: 1
  num_envs_per_env_runner: 8
"""


def result_of(script: Script) -> dict[str, Any]:
    assert script.process.returncode == 0, script.said
    assert script.left() == []
    result = json.loads(script.stdout)
    checkpoint = Path(result["checkpoint_path"])
    assert verify(checkpoint, read_manifest(checkpoint)) == []
    return result


@pytest.mark.parametrize(
    "env_name", [pytest.param("Acrobot-v1", marks=SOAKED), pytest.param("Pendulum-v1", marks=SOAKED)]
)
def test_another_environment_runs_through_to_its_budget(product: Product, env_name: str) -> None:
    (product.folder / "long.yaml").write_text(LONG_ITERATIONS)
    result = result_of(
        product.run(
            "--test-local", "--json", "--env-name", env_name, "--config", "long.yaml",
            "--max-iterations", "2", "--num-tune-samples", "2", "--seed", "3",
        )
    )  # fmt: skip
    assert result["rank_value"] < 0  # as all returns of these two are
    assert result["checkpoint_iteration"] <= 2


@soaked
def test_dqn_runs_through_with_its_own_preset(product: Product) -> None:
    script = product.run(
        "--test-local",
        "--json",
        "--algorithm",
        "DQN",
        "--max-iterations",
        "3",
        "--num-tune-samples",
        "2",
        "--seed",
        "3",
    )
    result = result_of(script)
    runs = tracked(script.store)
    assert result["rank_value"] > 0
    for run in runs.children:
        assert set(run.data.metrics) >= {
            *CONTRACT_METRICS,
            "hp/lr",
            "hp/train_batch_size",
            "hp/target_network_update_freq",
        }
        assert {"env", "lr", "train_batch_size", "num_cpus"} <= set(run.data.params)
        assert {"clip_param", "lambda", "kl_coeff", "num_sgd_iter"}.isdisjoint(run.data.params)


@pytest.fixture(scope="module")
def prefect_url(tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]) -> Iterator[str]:
    """The API of a real Prefect server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    server = Server(
        ["-m", "prefect", "server", "start", "--host", "127.0.0.1"],
        f"{url}/health",
        tmp_path_factory.mktemp("prefect-server") / "server.log",
        {
            **environment,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        },
    )
    yield url
    server.kill()


@pytest.fixture(scope="module")
def served(
    make_product: Any, prefect_url: str, environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Script, str]]:
    """A sweep that reports to both servers, and the tracking server's address."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), port, environment):
        product = make_product("served")
        script = product.run(*product.short("--json", "--tracking-uri", uri), PREFECT_API_URL=prefect_url)
        yield script, uri


@thorough
def test_a_tracking_server_takes_it_all_artifacts_included(served: tuple[Script, str], tmp_path: Path) -> None:
    script, uri = served
    result = result_of(script)
    assert result["tracking_uri"] == uri
    assert {path.name for path in script.folder.iterdir()} == {".plato", "model_checkpoints"}
    runs = tracked(uri)
    assert str(runs.parent.info.artifact_uri).startswith("mlflow-artifacts:")
    assert runs.artifacts(runs.parent) == ["config.yaml", "learning_curves.png", "lineage.jsonl", "summary.md"]
    assert runs.parent.info.status == "FINISHED"
    assert len(runs.children) == 2
    for run in runs.children:
        assert run.info.status == "FINISHED"
        assert [step for step, _ in runs.history(run, "training_iteration")] == [1, 2, 3, 4]
        assert {"params.json", "progress.csv", "result.json", "checkpoint_000004"} <= set(runs.artifacts(run))
    downloaded = runs.client.download_artifacts(result["top_run_id"], "checkpoint_000004", str(tmp_path))
    assert verify(downloaded, read_manifest(downloaded)) == []
    assert f"{uri}/#/experiments/{runs.parent.info.experiment_id}/runs/{result['top_run_id']}" in script.stderr


def test_a_prefect_server_shows_the_flow_run_and_its_tasks(served: tuple[Script, str], prefect_url: str) -> None:
    script, _ = served
    result_of(script)
    latest = {"sort": "START_TIME_DESC", "limit": 1}  # others are in the database too
    (run,) = ask(f"{prefect_url}/flow_runs/filter", "POST", latest)
    (flow,) = ask(f"{prefect_url}/flows/filter", "POST", {"flows": {"id": {"any_": [run["flow_id"]]}}})
    assert (flow["name"], run["state_name"]) == ("sweep", "Completed")
    tasks = ask(f"{prefect_url}/task_runs/filter", "POST", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    sweep_id = script.sweep_dir.name
    assert run["name"].startswith("pbt_ppo CartPole-v1 x2 #")
    assert {"plato", "PPO", "CartPole-v1", f"sweep:{sweep_id}"} == set(run["tags"])
    assert {task["name"]: task["state_name"] for task in tasks} == {
        f"open the parent run of {sweep_id}": "Completed",
        "train 2 x PPO on CartPole-v1": "Completed",
        "select the top run by episode_reward_mean": "Completed",
        "download checkpoint_000004": "Completed",
        f"write the summary of {sweep_id}": "Completed",
    }
    assert len(tasks) == 5
    assert all(task["tags"] == [] for task in tasks), "limits on tags would hold a sweep half-way"
    assert set(run["parameters"]) == set(SweepConfig.model_fields)
    given = {name: run["parameters"][name] for name in ("env_name", "seed", "num_tune_samples", "max_iterations")}
    assert given == {"env_name": "CartPole-v1", "seed": 3, "num_tune_samples": 2, "max_iterations": 4}
    assert run["parameters"]["hyperparameters"]["train_batch_size"] == 512

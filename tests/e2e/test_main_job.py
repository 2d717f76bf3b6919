"""`sweep_and_fetch.py --test-local --json --seed 1`, the main job, and everything that it leaves."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import gymnasium
import mlflow
import numpy as np
import pytest
import ray
import torch
import yaml
from product import ROOT, Product, Script
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from store import Tracked, tracked

from plato_core.config import SweepConfig
from plato_core.manifest import MANIFEST_NAME, read_manifest, verify
from plato_core.prune import prune
from plato_core.training.metrics import CONTRACT_METRICS, EPISODE_METRICS, LEARNER_METRICS

FIELDS = [
    "sweep_id", "parent_run_id", "experiment_name", "top_run_id", "rank_metric", "rank_value", "checkpoint_path",
    "checkpoint_iteration", "tracking_uri", "trials", "wall_s", "fit_s", "training_slot_s", "slots", "sweep_efficiency",
]  # fmt: skip
PPO_PARAMS = {
    "clip_param", "env", "kl_coeff", "lambda", "lr", "num_cpus", "num_gpus", "num_sgd_iter", "num_workers",
    "sgd_minibatch_size", "train_batch_size",
}  # fmt: skip
TUNED = {"hp/lr", "hp/lambda", "hp/clip_param"}
POPULATION, KEPT = 4, 3
TARGET = 475.0


@pytest.fixture(scope="module")
def result(main_job: Script) -> dict[str, Any]:
    assert main_job.process.returncode == 0, main_job.said
    return json.loads(main_job.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def runs(main_job: Script, result: dict[str, Any]) -> Tracked:
    return tracked(main_job.store)


@pytest.fixture(scope="module")
def checkpoint(result: dict[str, Any]) -> Path:
    return Path(result["checkpoint_path"])


def test_the_last_line_of_stdout_is_the_result_and_it_reached_the_target(result: dict[str, Any]) -> None:
    assert list(result) == FIELDS
    assert result["experiment_name"] == "pbt_ppo"
    assert result["rank_metric"] == "episode_reward_mean"
    assert result["rank_value"] >= TARGET
    assert result["trials"] == POPULATION
    assert 0 < result["training_slot_s"] <= result["slots"] * result["fit_s"]
    assert result["sweep_efficiency"] == pytest.approx(
        result["training_slot_s"] / (result["slots"] * result["fit_s"]), rel=0.01
    )
    assert result["fit_s"] < result["wall_s"]


def test_people_are_told_on_stderr_calmly_and_nothing_else_is_on_stdout(
    main_job: Script, result: dict[str, Any]
) -> None:
    assert len(main_job.stdout.splitlines()) == 1
    said = main_job.stderr
    for chatter in (
        "Traceback",
        "INFO",
        "WARNING",
        "Warning",
        "ERROR",
        "DEBUG",
        "\x1b",
        "prefect.",
        "alembic",
        "(raylet)",
    ):
        assert chatter not in said, said
    lines = said.splitlines()
    assert len(lines) < 60
    assert any("reaches the target" in line for line in lines)
    assert [line for line in lines if line.startswith("winner ") and result["top_run_id"] in line]
    assert [line for line in lines if line.startswith("checkpoint ") and "verified" in line]
    assert [line for line in lines if line.startswith("tracking ") and "complete" in line]
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in said


def test_nothing_runs_on_and_only_what_is_documented_is_left(main_job: Script, result: dict[str, Any]) -> None:
    assert main_job.left() == []
    assert {path.name for path in main_job.folder.iterdir()} == {".plato", "mlflow.db", "mlruns", "model_checkpoints"}
    assert main_job.sweep_dir.name == result["sweep_id"]
    assert not (main_job.sweep_dir / "tracking").exists()


def test_a_sweep_that_is_over_may_be_pruned_and_its_results_stay(main_job: Script, checkpoint: Path) -> None:
    pruned = prune(main_job.sweep_dir.parent, keep=0, dry_run=True)
    assert [(gone.sweep_id, gone.why) for gone in pruned.gone] == [(main_job.sweep_dir.name, "too many")]
    assert pruned.gone[0].bytes > 100_000
    assert not any(path.is_relative_to(main_job.sweep_dir) for path in (checkpoint, main_job.folder / "mlruns"))


def test_the_checkpoint_lies_under_the_top_runs_id_and_verifies(
    main_job: Script, result: dict[str, Any], checkpoint: Path
) -> None:
    name = f"checkpoint_{result['checkpoint_iteration']:06d}"
    assert checkpoint == main_job.folder / "model_checkpoints" / result["top_run_id"] / name
    manifest = read_manifest(checkpoint)
    assert verify(checkpoint, manifest) == []
    assert manifest.iteration == result["checkpoint_iteration"]
    assert manifest.sweep_id == result["sweep_id"]
    files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert files == {*manifest.files, MANIFEST_NAME}


def test_the_parent_run_records_what_was_run_and_how_it_ended(
    main_job: Script, runs: Tracked, result: dict[str, Any], tmp_path: Path
) -> None:
    parent = runs.parent
    assert (parent.info.run_id, parent.info.status) == (result["parent_run_id"], "FINISHED")
    params, tags = parent.data.params, parent.data.tags
    assert params["seed"] == "1"
    assert params["env_name"] == "CartPole-v1"
    assert params["stop_reward"] == "475.0"
    assert params["hyperparameters.train_batch_size"] == "2048"
    assert "mutations.lr" in params
    assert tags["plato.seed"] == "1"
    assert {f"plato.version.{name}" for name in ("ray", "mlflow", "prefect", "torch", "python")} <= set(tags)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert tags.get("mlflow.source.git.commit") == (commit.stdout.strip() or None)
    assert runs.artifacts(parent) == ["config.yaml", "learning_curves.png", "lineage.jsonl", "summary.md"]
    (written := tmp_path / "again.yaml").write_text(runs.text(parent, "config.yaml", tmp_path))
    assert SweepConfig.from_yaml(written) == SweepConfig.from_yaml(main_job.sweep_dir / "config.yaml")
    assert yaml.safe_load(written.read_text())["seed"] == 1


def test_each_exploit_is_an_event_of_the_lineage(main_job: Script, runs: Tracked, tmp_path: Path) -> None:
    events = [json.loads(line) for line in runs.text(runs.parent, "lineage.jsonl", tmp_path).splitlines()]
    assert len(events) == main_job.stderr.count(" exploits trial ")


def test_each_trial_is_a_finished_child_with_its_tags_and_params(main_job: Script, runs: Tracked) -> None:
    chosen = {*SweepConfig.from_yaml(main_job.sweep_dir / "config.yaml").hyperparameters}
    assert len(runs.children) == POPULATION
    for run in runs.children:
        assert run.info.status == "FINISHED"
        tags = run.data.tags
        assert tags["mlflow.runName"] == tags["trial_name"] == run.info.run_name
        assert set(run.data.params) >= PPO_PARAMS
        # Beside the eleven only what the config sets: not RLlib's hundreds.
        assert {name.partition(".")[0] for name in run.data.params} - PPO_PARAMS == chosen - PPO_PARAMS
        assert run.data.params["env"] == "CartPole-v1"
        assert float(run.data.params["kl_coeff"]) == 0.0


def test_each_trial_has_exactly_the_metrics_of_the_contract(runs: Tracked) -> None:
    assert len(CONTRACT_METRICS) == 29
    for run in runs.children:
        assert set(run.data.metrics) == {*CONTRACT_METRICS, *LEARNER_METRICS} | TUNED
        assert len(run.data.metrics) <= 50


def test_every_series_counts_the_trials_own_iterations_without_a_gap(runs: Tracked) -> None:
    for run in runs.children:
        iterations = runs.history(run, "training_iteration")
        steps = list(range(1, len(iterations) + 1))
        assert iterations == [(step, float(step)) for step in steps]
        for name in run.data.metrics:
            found = [step for step, _ in runs.history(run, name)]
            if name in EPISODE_METRICS:
                assert len(set(found)) == len(found)
                assert set(found) <= set(steps)
            else:
                assert found == steps, name
        for name in ("timesteps_total", "time_total_s", "episodes_total", "num_env_steps_trained"):
            values = [value for _, value in runs.history(run, name)]
            assert values == sorted(values), name


def test_each_trial_has_its_files_and_few_complete_checkpoints(main_job: Script, runs: Tracked, tmp_path: Path) -> None:
    for run in runs.children:
        (folder := tmp_path / run.info.run_id).mkdir()
        artifacts = runs.artifacts(run)
        checkpoints = [path for path in artifacts if path.startswith("checkpoint_")]
        assert set(artifacts) - set(checkpoints) == {"params.json", "progress.csv", "result.json"}
        full = json.loads(runs.text(run, "params.json", folder))
        assert len(full) > 150  # RLlib's own config, all of it
        rows = list(csv.DictReader(io.StringIO(runs.text(run, "progress.csv", folder))))
        results = [json.loads(line) for line in runs.text(run, "result.json", folder).splitlines()]
        assert len(rows) == len(results) == len(runs.history(run, "training_iteration"))
        assert 1 <= len(checkpoints) <= KEPT + 1
        for path in checkpoints:
            downloaded = Path(runs.client.download_artifacts(run.info.run_id, path, str(folder)))
            manifest = read_manifest(downloaded)
            assert path == f"checkpoint_{manifest.iteration:06d}"
            assert verify(downloaded, manifest) == []
        # The last is always among them.
        assert max(checkpoints) == f"checkpoint_{len(results):06d}"


def test_the_disk_keeps_few_checkpoints_of_each_trial(main_job: Script) -> None:
    trials = [path for path in (main_job.sweep_dir / "tune").iterdir() if path.is_dir()]
    assert len(trials) == POPULATION
    for trial in trials:
        assert 1 <= len(list(trial.glob("checkpoint_*"))) <= KEPT + 1


def test_the_winner_is_the_best_of_the_children_by_its_latest_return(runs: Tracked, result: dict[str, Any]) -> None:
    latest = {run.info.run_id: run.data.metrics["episode_reward_mean"] for run in runs.children}
    assert result["rank_value"] == latest[result["top_run_id"]] == max(latest.values())


def test_the_filters_that_users_type_find_the_trials(
    main_job: Script, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", main_job.store)

    def search(filter_string: str) -> list[str]:
        found: Any = mlflow.search_runs(
            experiment_names=["pbt_ppo"],
            filter_string=filter_string,
            order_by=["metrics.episode_reward_mean DESC"],
        )
        return list(found["run_id"])

    good = search("metrics.episode_reward_mean > 0 and attributes.status = 'FINISHED'")
    assert len(good) == POPULATION
    assert good[0] == result["top_run_id"], result["warnings"]
    assert search(f"metrics.episode_reward_mean >= {TARGET} and params.env = 'CartPole-v1'")[0] == result["top_run_id"]
    assert len(search(f"tags.mlflow.parentRunId = '{result['parent_run_id']}'")) == POPULATION
    assert search("params.sgd_minibatch_size = '1'") == []


def test_the_algorithm_loads_from_the_checkpoint(checkpoint: Path) -> None:
    # RLlib would start one by itself, unless it believes that another is there.
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    algorithm = Algorithm.from_checkpoint(str(checkpoint))
    try:
        assert algorithm.get_module() is not None
        assert algorithm.iteration > 0
    finally:
        algorithm.stop()
        ray.shutdown()


def test_the_policy_alone_plays_as_well_as_it_promised(checkpoint: Path, result: dict[str, Any]) -> None:
    folder = checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy"
    policy = RLModule.from_checkpoint(str(folder))
    returns = [play(policy, seed) for seed in range(20)]
    promised = read_manifest(checkpoint).score
    assert promised is not None
    assert promised >= 0.9 * TARGET
    assert np.mean(returns) >= 0.9 * promised, returns


def play(policy: Any, seed: int) -> float:
    """Returns the return of one episode in which every action is the likeliest."""
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    with torch.no_grad():
        while not over:
            out = policy.forward_inference({Columns.OBS: torch.from_numpy(observation[None])})
            observation, reward, terminated, truncated, _ = env.step(int(out[Columns.ACTION_DIST_INPUTS].argmax()))
            total, over = total + float(reward), terminated or truncated
    env.close()
    return total


def test_the_fetch_script_finds_the_same_winner_and_its_checkpoint(main_job: Script, product: Product) -> None:
    fetch = ROOT / "flows" / "get_mlflow_artifacts.py"
    script = product.run(
        "--experiment", "pbt_ppo", "--tracking-uri", main_job.store,
        "--local-path", main_job.folder / "model_checkpoints",
        program=fetch,
    )  # fmt: skip
    assert script.process.returncode == 0, script.said
    assert script.stdout.strip() == json.loads(main_job.stdout.splitlines()[-1])["checkpoint_path"]

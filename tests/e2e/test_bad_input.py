"""What cannot be is said in one line, with exit code 2, before anything is created or started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from product import Product, free_port

# (arguments, what the line holds: the value, what is allowed, the way out)
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown environment": (["--env-name", "CartPol-v1"], ["'CartPol-v1'", "did you mean CartPole-v1"]),
    "unknown version": (["--env-name", "CartPole-v9"], ["'CartPole-v9'", "did you mean CartPole-v1"]),
    "actions that the algorithm cannot use": (
        ["--env-name", "Pendulum-v1", "--algorithm", "DQN"],
        ["DQN", "Pendulum-v1", "needs Discrete", "--algorithm PPO"],
    ),
    "unknown algorithm": (["--algorithm", "PPOO"], ["'PPOO'", "PPO or APPO or IMPALA or DQN or SAC"]),
    "unknown scheduler": (["--scheduler", "pbtt"], ["'pbtt'", "pbt or asha or median"]),
    "unknown metric": (["--rank-metric", "episode_reward_meen"], ["did you mean episode_reward_mean", "vf_loss"]),
    "unknown preset": (["--preset", "platoo"], ["'platoo'", "did you mean plato"]),
    "population of none": (["--num-tune-samples", "0"], ["--num-tune-samples", "'0'", "at least 1"]),
    "no number": (["--seed", "many"], ["--seed", "'many'", "whole number"]),
    "more CPUs than there are": (["--num-cpus", "4000"], ["4000", f"at most {len(os.sched_getaffinity(0))}"]),
    "more env runners than CPUs": (["--num-env-runners", "4000"], ["4000", "give at most"]),
    "unknown flag": (["--num-tune-sample", "3"], ["--num-tune-sample", "--num-tune-samples"]),
    "a word that is no flag": (["sweep"], ["'sweep'", "--help"]),
    "a cluster with --test-local": (["--ray-address", "auto"], ["--ray-address", "--test-local"]),
    "a kind of store that is not supported": (["--tracking-uri", "ftp://here"], ["'ftp'", "sqlite"]),
    "a file's folder as the store": (["--tracking-uri", "./mlruns"], ["sqlite:///mlflow.db"]),
}

# (the file, what the line holds)
MISTAKES_IN_A_FILE: dict[str, tuple[str, list[str]]] = {
    "bounds reversed": (
        "mutations:\n  lr: {type: loguniform, low: 0.1, high: 0.001}\n",
        ["line 2", "mutations.lr", "0.1", "0.001"],
    ),
    "misspelled setting": (
        "seed: 1\nnum_tune_sampels: 3\n",
        ["line 2", "num_tune_sampels", "did you mean num_tune_samples"],
    ),
    "misspelled hyperparameter": (
        "hyperparameters:\n  lr: 0.001\n  clip_parm: 0.2\n",
        ["line 3", "clip_parm", "did you mean clip_param"],
    ),
    "unreadable": ("seed: [1\n", ["line 2", "not readable as YAML"]),
    "a hyperparameter that the algorithm lacks": (
        "algorithm: DQN\nhyperparameters:\n  clip_param: 0.2\n",
        ["line 3", "DQN", "clip_param"],
    ),
}  # fmt: skip


def refused(product: Product, *arguments: str) -> str:
    """Returns the one line with which a command line is refused, seen that nothing else came of it."""
    before = sorted(product.folder.rglob("*"))
    script = product.run("--test-local", *arguments, timeout_s=60.0)
    assert script.process.returncode == 2, script.said
    assert script.stdout == ""
    assert script.stderr.startswith("error: ")
    assert script.stderr.count("\n") == 1, script.said
    assert script.stderr.endswith("\n")
    assert sorted(product.folder.rglob("*")) == before
    assert script.left() == []
    return script.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_flag_is_one_line_and_nothing_is_created(product: Product, mistake: str) -> None:
    arguments, parts = MISTAKES[mistake]
    line = refused(product, *arguments)
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize("mistake", MISTAKES_IN_A_FILE)
def test_a_mistake_in_a_config_file_names_its_line(product: Product, mistake: str) -> None:
    content, parts = MISTAKES_IN_A_FILE[mistake]
    (product.folder / "mine.yaml").write_text(content)
    line = refused(product, "--config", "mine.yaml")
    assert [part for part in ["mine.yaml", *parts] if part not in line] == [], line


def test_a_config_file_that_is_not_there_is_named(product: Product) -> None:
    assert "nowhere.yaml: there is no such file" in refused(product, "--config", "nowhere.yaml")


def test_a_tracking_server_that_does_not_answer_is_said_at_once(product: Product) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    line = refused(product, "--tracking-uri", address)
    assert address in line
    assert "cannot be reached" in line
    assert "--tracking-uri" in line


@pytest.mark.parametrize("path", ["taken", "taken/below"])
def test_a_file_where_the_results_folder_should_be_is_named(product: Product, path: str) -> None:
    (product.folder / "taken").write_text("mine")
    line = refused(product, "--local-path", path)
    assert f"{product.folder / 'taken'} is a file" in line
    assert "--local-path" in line
    assert (product.folder / "taken").read_text() == "mine"


def test_a_mistake_is_found_without_loading_anything_heavy(product: Product, tmp_path: Path) -> None:
    script = product.run("--algorithm", "PPOO", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in script.stderr.splitlines()}
    assert loaded >= {"cyclopts", "pydantic"}
    assert loaded & {"ray", "torch", "mlflow", "prefect", "numpy", "gymnasium"} == set()

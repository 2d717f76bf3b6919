"""The config model: what it refuses, and that it comes back unchanged from wherever it was written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plato_core.config import SweepConfig
from plato_core.config_sources import load_config
from plato_core.errors import ConfigError
from plato_core.search_space import Choice, Integer, LogUniform, Uniform
from plato_core.training import schema
from plato_core.training.metrics import MAX_TUNED_VALUES

TUNED = {"lr": {"type": "loguniform", "low": 1e-5, "high": 1e-3}}
ENDING: dict[str, Any] = {"max_iterations": 3}


def config(**settings: Any) -> SweepConfig:
    return SweepConfig.from_flow_parameters({**ENDING, "mutations": TUNED, **settings})


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        config(**settings)
    text = str(error.value)
    assert "\n" not in text
    assert "pydantic" not in text
    return text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_tune_samples": 0}, ["num_tune_samples: 0", "at least 1"]),
        ({"scheduler": "asah"}, ["'asah'", "pbt or asha or median", "did you mean asha?"]),
        ({"algorithm": "PPPO"}, ["'PPPO'", "did you mean PPO?", "DQN"]),
        ({"quantile_fraction": 0.6}, ["0.6", "greater than 0 and at most 0.5"]),
        ({"resample_probability": -0.1}, ["-0.1", "at least 0 and at most 1"]),
        ({"seed": 2**31}, ["2147483648", "less than 2147483648"]),
        ({"experiment_name": ""}, ["experiment_name: ''", "not empty"]),
        ({"stop_reward": float("nan")}, ["stop_reward: nan", "a number"]),
        ({"perturbation_interval": 2.5}, ["2.5 iterations", "perturbation_unit: seconds"]),
        ({"keep_checkpoint": 1}, ["keep_checkpoint: ", "did you mean keep_checkpoints?"]),
        ({"storage_path": "s3://bucket/x"}, ["s3://bucket/x", "folder"]),
        ({"test_local": True, "ray_address": "auto"}, ["ray_address: 'auto'", "--test-local"]),
        (
            {"rank_metric": "metrics.episode_reward"},
            ["'episode_reward'", "did you mean", "training_iteration"],
        ),
        ({"metric": "reward"}, ["metric: 'reward'", "episode_reward_mean"]),
        ({"rank_metric": "hp/gamma"}, ["'hp/gamma'", "hp/lr"]),
        ({"mutations": {}}, ["nothing to mutate", "give mutations"]),
        ({"mutations": {"lr": {"type": "uniform", "low": 1, "high": 0}}}, ["mutations.lr", "reversed"]),
        ({"mutations": {"leraning_rate": [1, 2]}}, ["no hyperparameter 'leraning_rate'", "it has"]),
        ({"mutations": {"gama": [0.9, 0.99]}}, ["did you mean gamma?"]),
        ({"hyperparameters": {"num_workers": 2}}, ["num_env_runners"]),
        ({"hyperparameters": {"num_env_runners": 2}}, ["hyperparameters.num_workers", "num_env_runners"]),
        ({"hyperparameters": {"num_epochs": 2, "num_sgd_iter": 2}}, ["two names of one thing"]),
        ({"hyperparameters": {"lr": 1.0}}, ["lr: 1.0", "loguniform from 1e-05 to 0.001", "{lr: null}"]),
        ({"hyperparameters": {"gamma": "high"}}, ["'high'", "give a number"]),
        ({"hyperparameters": {"gamma": float("inf")}}, ["hyperparameters.gamma: inf", "finite"]),
        ({"env_config": {"size": {"a": object}}}, ["env_config.size: ", "plain values"]),
        ({"hyperparameters": {"num_sgd_iter": 2.5}}, ["2.5", "whole number"]),
        ({"hyperparameters": {"use_gae": 3}}, ["true or false"]),
        (
            {"hyperparameters": 5, "mutations": {"train_batch_size": [256, 512]}},
            ["hyperparameters: 5", "a mapping"],
        ),
        ({"mutations": 5}, ["mutations: 5", "a mapping"]),
        ({"mutations": {"num_sgd_iter": {"type": "uniform", "low": 1, "high": 9}}}, ["type: integer"]),
        ({"hyperparameters": {"train_batch_size": 0}}, ["at least 1"]),
        ({"hyperparameters": {"train_batch_size": 64}}, ["128", "64", "raise train_batch_size"]),
        (
            {"hyperparameters": {"train_batch_size": 64, "sgd_minibatch_size": 65}},
            ["sgd_minibatch_size of 65", "train_batch_size of 64"],
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_way_out(settings: dict[str, Any], said: list[str]) -> None:
    text = refusal(**settings)
    for part in said:
        assert part in text


def test_a_sweep_without_an_end_is_refused() -> None:
    text = refusal(max_iterations=None)
    for flag in ("--stop-reward", "--max-iterations", "--time-budget-s"):
        assert flag in text


def test_more_tuned_values_than_can_be_tracked_are_refused() -> None:
    numbers = [n for n in schema.keys("PPO") if isinstance(schema.default("PPO", n), float | bool)]
    values = {n: [True, False] if isinstance(schema.default("PPO", n), bool) else [0.1, 0.2] for n in numbers}
    assert len(values) > MAX_TUNED_VALUES
    assert f"at most {MAX_TUNED_VALUES}" in refusal(mutations=values)


@pytest.mark.parametrize(
    ("uri", "way_out"),
    [
        ("postgresql://plato:s3cret@db/mlflow", "PGPASSWORD"),
        ("postgresql://db/mlflow?user=plato&password=s3cret", "PGPASSWORD"),
        ("mysql+pymysql://plato:s3cret@db/mlflow", "option file"),
        ("https://plato:s3cret@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("https://s3cret@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("https://mlflow.example?api_key=s3cret", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated(uri: str, way_out: str) -> None:
    text = refusal(tracking_uri=uri)
    assert way_out in text
    assert "s3cret" not in text


def test_a_metric_that_the_algorithm_never_reports_is_refused() -> None:
    assert "'kl' is not a metric" in refusal(algorithm="DQN", mutations={"lr": [0.1, 0.2]}, rank_metric="kl")
    assert config(rank_metric="kl").rank_metric_name == "kl"


def test_names_are_canonical_wherever_they_came_from() -> None:
    made = config(
        hyperparameters={"num_epochs": 4, "lambda_": 0.9},
        mutations={"minibatch_size": {"type": "integer", "low": 32, "high": 256}},
    )
    assert made.hyperparameters == {"num_sgd_iter": 4, "lambda": 0.9, "train_batch_size": 4000}
    assert made.mutations == {"sgd_minibatch_size": Integer(low=32, high=256)}


def test_a_batch_alone_brings_rllibs_minibatch_with_it() -> None:
    assert config(hyperparameters={"train_batch_size": 2000}).hyperparameters["sgd_minibatch_size"] == 128
    dqn = config(algorithm="DQN", hyperparameters={"train_batch_size": 64})
    assert dqn.hyperparameters == {"train_batch_size": 64}


def test_null_takes_a_hyperparameter_or_mutation_away() -> None:
    made = config(hyperparameters={"gamma": None}, mutations={**TUNED, "lambda": None})
    assert made.hyperparameters == {}
    assert set(made.mutations) == {"lr"}


@pytest.mark.parametrize("name", ["metrics.vf_loss", "vf_loss"])
def test_the_rank_metric_goes_with_or_without_its_prefix(name: str) -> None:
    made = config(rank_metric=name)
    assert made.rank_metric_name == "vf_loss"
    assert made.scheduler_metric_name == "vf_loss"
    assert config(rank_metric=name, metric="metrics.hp/lr").scheduler_metric_name == "hp/lr"


def test_checkpoints_come_with_the_perturbations_unless_told_otherwise() -> None:
    assert config(perturbation_interval=7).checkpoint_every == 7
    assert config(perturbation_interval=7, checkpoint_interval=2).checkpoint_every == 2


def test_the_local_store_is_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = config()
    assert made.store_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert made.artifact_root == tmp_path / "mlruns"
    assert config(tracking_uri="sqlite:///sub/x.db").store_uri == f"sqlite:///{tmp_path}/sub/x.db"
    assert config(tracking_uri="http://host:5000").store_uri == "http://host:5000"
    assert config(tracking_uri="http://host:5000").artifact_root is None
    assert made.storage_folder == tmp_path / ".plato/sweeps"
    assert made.local_folder == tmp_path / "model_checkpoints"


def test_every_setting_explains_itself_on_a_form() -> None:
    for name, field in SweepConfig.model_fields.items():
        assert field.title, name
        assert field.description, name
    form = SweepConfig.model_json_schema()
    assert list(form["properties"]) == list(SweepConfig.model_fields)
    assert form["properties"]["num_tune_samples"]["minimum"] == 1


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
numbers = st.floats(1e-6, 1e6) | st.integers(1, 10**6)
nested = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
possible = st.fixed_dictionaries(
    {"max_iterations": st.integers(1, 10**6)},
    optional={
        "env_name": names,
        "env_config": st.dictionaries(names, nested, max_size=3),
        "experiment_name": names,
        "seed": st.integers(0, 2**31 - 1),
        "stop_reward": st.floats(-1e9, 1e9),
        "time_budget_s": numbers,
        "perturbation_unit": st.just("seconds"),
        "perturbation_interval": st.integers(1, 1000),
        "num_gpus": st.floats(0, 8),
        "mode": st.sampled_from(["max", "min"]),
        "test_local": st.booleans(),
        "hyperparameters": st.fixed_dictionaries(
            {},
            optional={
                "gamma": st.floats(0.5, 1.0) | st.builds(lambda: Uniform(low=0.9, high=0.99)),
                "grad_clip_by": names,
                "model_config": st.dictionaries(names, nested, max_size=3),
                "num_epochs": st.integers(1, 30) | st.just(Choice(values=(1, 2, 30))),
            },
        ),
    },
)


@given(possible, st.floats(1e-9, 1e-4), st.sampled_from(["plato", "test-local", "none"]))
@settings(deadline=None, max_examples=40)
def test_a_config_comes_back_from_flow_parameters_and_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], low: float, preset: str
) -> None:
    values = {"mutations": {"lr": LogUniform(low=low, high=0.5)}, "preset": preset, **values}
    made = load_config(values, None, {})
    parameters = json.loads(json.dumps(made.flow_parameters()))
    assert SweepConfig.from_flow_parameters(parameters) == made
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(made.to_yaml(), encoding="utf-8")
    assert SweepConfig.from_yaml(file) == made
    assert load_config({}, file, {}) == made


def test_the_config_imports_nothing_heavy() -> None:
    code = (
        "import sys, plato_core.config_sources, plato_core.search_space, plato_core.training.environments;"
        "print([m for m in ('ray','mlflow','prefect','torch','numpy','gymnasium') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The shipped presets, with every algorithm."""

from pathlib import Path

import pytest

from plato_core import presets
from plato_core.config import SweepConfig
from plato_core.config_sources import load_config
from plato_core.names import canonical
from plato_core.search_space import Choice, Integer, Uniform, initial_population
from plato_core.training import schema

EVERY = [(preset, algorithm) for preset in presets.names() for algorithm in schema.algorithms()]


@pytest.mark.parametrize(("preset", "algorithm"), EVERY)
def test_every_preset_makes_a_sweep_of_every_algorithm(preset: str, algorithm: str) -> None:
    config = load_config({"preset": preset, "algorithm": algorithm}, None, {})
    assert config.mutations
    assert len(initial_population(config.hyperparameters, config.mutations, 8, seed=0)) == 8


@pytest.mark.parametrize("preset", presets.names())
def test_a_preset_speaks_in_settings_and_canonical_names(preset: str) -> None:
    content = presets.read(preset)
    assert content["title"]
    assert content["description"]
    assert set(content) <= {"title", "description", "config", "algorithms", "env_defaults"}
    assert set(content["algorithms"]) <= set(schema.algorithms())
    parts = [content["config"], *content["algorithms"].values(), *content.get("env_defaults", {}).values()]
    for part in parts:
        assert set(part) <= set(SweepConfig.model_fields)
        for field in ("hyperparameters", "mutations"):
            assert all(canonical(name) == name for name in part.get(field, {}))


@pytest.mark.parametrize(("preset", "algorithm"), EVERY)
def test_an_overlay_names_only_what_its_algorithm_has(preset: str, algorithm: str) -> None:
    overlay = presets.read(preset)["algorithms"].get(algorithm, {})
    for field in ("hyperparameters", "mutations"):
        given = {name for name, value in overlay.get(field, {}).items() if value is not None}
        # IMPALA shares APPO's overlay, and has the same names in it.
        assert given <= set(schema.keys(algorithm))


def test_the_plato_preset_is_the_guides() -> None:
    config = load_config({}, None, {})
    assert config.preset == "plato"
    assert config.mutations == {
        "lambda": Uniform(low=0.9, high=1.0),
        "clip_param": Uniform(low=0.01, high=0.5),
        "lr": Choice(values=(1e-3, 5e-4, 1e-4, 5e-5, 1e-5)),
        "num_sgd_iter": Integer(low=1, high=30),
        "sgd_minibatch_size": Integer(low=128, high=16384),
        "train_batch_size": Integer(low=2000, high=160000),
    }
    assert config.hyperparameters == {
        "lambda": 0.95,
        "clip_param": 0.2,
        "lr": 1e-4,
        "kl_coeff": 1.0,
        "num_sgd_iter": Choice(values=(10, 20, 30)),
        "sgd_minibatch_size": Choice(values=(128, 512, 2048)),
        "train_batch_size": Choice(values=(10000, 20000, 40000)),
    }
    assert (config.perturbation_interval, config.perturbation_unit) == (120, "seconds")
    assert config.resample_probability == 0.25


def test_test_local_aims_at_475_on_cartpole_only() -> None:
    cartpole = load_config({"test_local": True}, None, {})
    assert (cartpole.preset, cartpole.stop_reward, cartpole.stop_when) == ("test-local", 475, "first")
    assert (cartpole.max_iterations, cartpole.time_budget_s) == (60, 300)
    acrobot = load_config({"test_local": True, "env_name": "Acrobot-v1"}, None, {})
    assert acrobot.stop_reward is None
    told = load_config({"test_local": True, "env_name": "Acrobot-v1", "stop_reward": -90}, None, {})
    assert told.stop_reward == -90


def test_dqn_has_values_of_its_own_and_none_of_ppos() -> None:
    config = load_config({"test_local": True, "algorithm": "DQN"}, None, {})
    assert "clip_param" not in config.hyperparameters
    assert "lambda" not in config.mutations
    assert {"lr", "train_batch_size"} <= set(config.mutations)


def test_an_overlay_can_take_a_value_away() -> None:
    assert "lambda" in presets.partial("plato", "PPO", "CartPole-v1")["mutations"]
    assert "lambda" not in presets.partial("plato", "APPO", "CartPole-v1")["mutations"]


def test_no_preset_leaves_the_models_defaults(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("preset: none\nmax_iterations: 3\nmutations: {lr: [1e-3, 1e-4]}\n")
    config = load_config({}, file, {})
    assert config.preset == "none"
    assert config.hyperparameters == {}
    assert config.mutations == {"lr": Choice(values=(1e-3, 1e-4))}

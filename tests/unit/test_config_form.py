"""A deployment's form: what it shows, and what comes back from it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plato_core import presets
from plato_core.config import SweepConfig
from plato_core.config_form import form_values, from_form, storage_of
from plato_core.config_sources import load_config
from plato_core.errors import ConfigError
from plato_core.training import schema

PRESETS = presets.names()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_form_shows_every_setting_with_its_preset_applied(preset: str) -> None:
    values = form_values(preset)
    assert list(values) == list(SweepConfig.model_fields)
    assert values["mutations"]
    assert values["seed"] is None  # each run draws its own


@pytest.mark.parametrize("preset", PRESETS)
def test_a_form_that_is_left_alone_runs_what_it_shows(preset: str) -> None:
    shown = form_values(preset)
    config = from_form(shown, {})
    assert config.flow_parameters() | {"seed": None} == shown
    assert config.seed is not None


@given(
    preset=st.sampled_from(PRESETS),
    algorithm=st.sampled_from(schema.algorithms()),
    env_name=st.sampled_from(["CartPole-v1", "Acrobot-v1", "Pendulum-v1"]),
    population=st.integers(1, 64),
)
def test_a_choice_in_a_form_means_what_it_means_as_a_flag(
    preset: str, algorithm: str, env_name: str, population: int
) -> None:
    choice = {"algorithm": algorithm, "env_name": env_name, "num_tune_samples": population, "seed": 1}
    by_flags = load_config({"preset": preset, **choice}, None, {})
    assert from_form(form_values(preset) | choice, {}) == by_flags
    assert from_form(by_flags.flow_parameters(), {}) == by_flags


def test_another_environment_does_not_keep_the_old_ones_target() -> None:
    assert form_values("test-local")["stop_reward"] == 475
    assert from_form(form_values("test-local") | {"env_name": "Acrobot-v1"}, {}).stop_reward is None
    chosen = from_form(form_values("test-local") | {"env_name": "Acrobot-v1", "stop_reward": -100}, {})
    assert chosen.stop_reward == -100


def test_a_value_that_is_taken_out_of_the_form_is_gone() -> None:
    shown = form_values("test-local")
    mutations = {name: value for name, value in shown["mutations"].items() if name != "lambda"}
    config = from_form(shown | {"mutations": mutations}, {})
    assert set(config.mutations) == {"lr", "clip_param"}
    assert from_form(shown | {"stop_reward": None}, {}).stop_reward is None


def test_typed_values_of_a_validated_call_count_as_what_they_say() -> None:
    config = from_form(form_values("test-local"), {})
    typed = {name: getattr(config, name) for name in SweepConfig.model_fields}
    assert from_form(typed, {}) == config


def test_only_the_places_come_from_the_environment() -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "PLATO_NUM_TUNE_SAMPLES": "64"}
    config = from_form(form_values("test-local"), environ)
    assert config.tracking_uri == "http://127.0.0.1:5000"
    assert config.num_tune_samples == 4
    chosen = from_form(form_values("test-local") | {"tracking_uri": "sqlite:///mine.db"}, environ)
    assert chosen.tracking_uri == "sqlite:///mine.db"


def test_a_call_with_a_few_settings_starts_from_the_usual_preset() -> None:
    config = from_form({"env_name": "Acrobot-v1"}, {})
    assert config.preset == "plato"
    bare = from_form({"preset": "none", "max_iterations": 1, "num_tune_samples": 1}, {})
    assert (bare.preset, bare.mutations, bare.hyperparameters) == ("none", {}, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithm": "XPO"}, "algorithm: 'XPO' is not known"),
        ({"num_tune_samples": 0}, "num_tune_samples: "),
        ({"preset": "weekly"}, "preset: there is no preset 'weekly'"),
    ],
)
def test_what_is_not_possible_is_named_as_the_form_names_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_form(form_values("test-local") | given, {})
    assert str(caught.value).startswith(message)


def test_another_preset_in_a_form_brings_its_own_settings() -> None:
    shown = form_values("test-local")
    config = from_form(shown | {"preset": "nightly", "seed": 1}, {}, shown)
    assert config == load_config({"preset": "nightly", "seed": 1}, None, {})


def test_a_form_is_compared_with_what_its_own_deployment_showed() -> None:
    shown = form_values("test-local", algorithm="DQN", env_name="Acrobot-v1", stop_reward=-90)
    assert from_form(shown, {}, shown).algorithm == "DQN"
    other = from_form(shown | {"algorithm": "PPO"}, {}, shown)
    by_flags = {"preset": "test-local", "env_name": "Acrobot-v1", "stop_reward": -90, "seed": other.seed}
    assert other == load_config(by_flags, None, {})


@pytest.mark.parametrize(
    ("field", "alias", "name", "value"),
    [
        ("hyperparameters", "num_epochs", "num_sgd_iter", 5),
        ("mutations", "lambda_", "lambda", {"low": 0.5, "high": 0.9}),
    ],
)
def test_rllibs_own_names_in_a_form_mean_what_they_mean_in_a_file(
    field: str, alias: str, name: str, value: Any
) -> None:
    shown = form_values("test-local")
    mapping = {key: held for key, held in shown[field].items() if key != name}
    given = {"type": "uniform", **value} if isinstance(value, dict) else value
    config = from_form(shown | {field: {**mapping, alias: given}}, {}, shown)
    assert config.flow_parameters()[field][name] == given
    with pytest.raises(ConfigError, match=f"{field}: .* two names"):
        from_form(shown | {field: {**shown[field], alias: given}}, {}, shown)


def test_a_deployments_own_settings_stand_beside_its_preset() -> None:
    values = form_values("nightly", env_name="Acrobot-v1", stop_reward=-90, seed=3)
    assert (values["env_name"], values["stop_reward"], values["seed"]) == ("Acrobot-v1", -90, 3)
    assert from_form(values, {}).flow_parameters() == values


def test_where_the_files_go_and_how_many_nodes_come_is_said_by_the_machine() -> None:
    environ = {"PLATO_STORAGE_PATH": "/mnt/sweeps", "PLATO_RAY_ADDRESS": "auto", "PLATO_RAY_NODES": "2"}
    shown = form_values("test-local")
    config = from_form(shown, environ, shown)
    assert (config.storage_path, config.ray_address, config.ray_nodes) == ("/mnt/sweeps", "auto", 2)
    assert from_form(shown | {"storage_path": "mine"}, environ, shown).storage_path == "mine"
    assert storage_of(shown, environ, shown) == Path("/mnt/sweeps")
    assert storage_of(shown | {"storage_path": "/mine"}, environ, shown) == Path("/mine")
    assert storage_of({}, {}) == Path(".plato/sweeps").absolute()


@pytest.mark.parametrize("own", [{}, {"storage_path": "/own"}])
@pytest.mark.parametrize("typed", [{}, {"storage_path": "/mine"}, {"storage_path": ".plato/sweeps"}])
def test_a_sweep_is_looked_for_where_it_was_written(own: dict[str, Any], typed: dict[str, Any]) -> None:
    environ = {"PLATO_STORAGE_PATH": "/mnt/sweeps"}
    shown = form_values("test-local", **own)
    assert storage_of(shown | typed, environ, shown) == from_form(shown | typed, environ, shown).storage_folder
    assert storage_of(shown, environ, shown) == Path("/own" if own else "/mnt/sweeps")


def test_a_sweep_of_a_deployments_own_folder_goes_on_there(tmp_path: Path) -> None:
    sweep = tmp_path / "20260101-000000-abcdef"
    sweep.mkdir()
    shown = form_values("test-local", storage_path=str(tmp_path))
    environ = {"PLATO_STORAGE_PATH": "/mnt/sweeps"}
    (sweep / "config.yaml").write_text(from_form(shown, environ, shown).to_yaml())
    assert from_form(shown | {"resume": "last"}, environ, shown).resume == sweep.name


def test_a_sweep_that_goes_on_runs_on_the_machines_that_it_has_now(tmp_path: Path) -> None:
    sweep = tmp_path / "20260101-000000-abcdef"
    sweep.mkdir()
    shown = form_values("test-local")
    begun = from_form(shown | {"seed": 1}, {"PLATO_RAY_ADDRESS": "auto", "PLATO_RAY_NODES": "2"}, shown)
    (sweep / "config.yaml").write_text(begun.to_yaml())
    environ = {"PLATO_STORAGE_PATH": str(tmp_path), "PLATO_RAY_ADDRESS": "local", "PLATO_RAY_NODES": "1"}
    config = from_form(shown | {"resume": "last"}, environ, shown)
    assert (config.resume, config.ray_address, config.ray_nodes) == (sweep.name, None, 1)


def test_several_nodes_need_a_cluster() -> None:
    with pytest.raises(ConfigError, match="ray_nodes: 2 nodes are possible on a Ray cluster only"):
        from_form(form_values("test-local") | {"ray_nodes": 2}, {})

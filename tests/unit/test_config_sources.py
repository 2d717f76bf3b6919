"""Where settings come from, and what a user is told about one that is wrong."""

from pathlib import Path
from typing import Any

import pytest

from plato_core.config_sources import load_config
from plato_core.errors import ConfigError
from plato_core.search_space import Choice, LogUniform, Uniform


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("sweep.yaml").write_text(text)
        return Path("sweep.yaml")

    return write


def refusal(flags: dict[str, Any], file: Path | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(flags, file, environ)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flags_beat_the_file_beats_the_environment_beats_the_preset(write: Any) -> None:
    environ = {"PLATO_NUM_TUNE_SAMPLES": "6", "PLATO_KEEP_CHECKPOINTS": "7", "PLATO_TIME_BUDGET_S": "8"}
    file = write("num_tune_samples: 16\nkeep_checkpoints: 17\n")
    config = load_config({"num_tune_samples": 26}, file, environ)
    assert (config.num_tune_samples, config.keep_checkpoints, config.time_budget_s) == (26, 17, 8)
    assert config.perturbation_interval == 120
    assert config.rank_metric == "metrics.episode_reward_mean"


def test_a_null_in_the_file_beats_what_is_below(write: Any) -> None:
    file = write("time_budget_s: null\nmax_iterations: 3\n")
    assert load_config({}, file, {"PLATO_TIME_BUDGET_S": "8"}).time_budget_s is None


def test_plato_variables_beat_those_of_the_libraries() -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://a:1", "RAY_ADDRESS": "ray://b:2"}
    config = load_config({}, None, environ)
    assert (config.tracking_uri, config.ray_address) == ("http://a:1", "ray://b:2")
    assert load_config({}, None, environ | {"PLATO_TRACKING_URI": "http://c:3"}).tracking_uri == "http://c:3"
    assert load_config({}, None, {"MLFLOW_TRACKING_URI": ""}).tracking_uri is None


def test_test_local_stays_on_this_machine_whatever_the_shell_is_set_up_for(write: Any) -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://a:1", "PLATO_TRACKING_URI": "http://c:3", "RAY_ADDRESS": "b:2"}
    config = load_config({"test_local": True}, None, environ)
    assert (config.tracking_uri, config.ray_address) == (None, None)
    told = load_config({"test_local": True, "tracking_uri": "http://d:4"}, None, environ)
    assert told.tracking_uri == "http://d:4"
    file = write("tracking_uri: http://e:5\n")
    assert load_config({"test_local": True}, file, environ).tracking_uri == "http://e:5"
    assert "--ray-address: 'b:2'" in refusal({"test_local": True, "ray_address": "b:2"})


def test_test_local_from_the_environment_chooses_its_preset() -> None:
    assert load_config({}, None, {"PLATO_TEST_LOCAL": "true"}).preset == "test-local"
    assert load_config({"preset": "plato"}, None, {"PLATO_TEST_LOCAL": "true"}).preset == "plato"
    assert load_config({"test_local": True}, None, {"PLATO_PRESET": "plato"}).preset == "test-local"
    assert "PLATO_TEST_LOCAL: 'perhaps'" in refusal({}, PLATO_TEST_LOCAL="perhaps")


def test_mappings_in_the_environment_are_read() -> None:
    config = load_config({}, None, {"PLATO_MUTATIONS": "{gamma: [0.98, 0.99]}"})
    assert config.mutations["gamma"] == Choice(values=(0.98, 0.99))
    assert "clip_param" in config.mutations
    assert "PLATO_MUTATIONS" in refusal({}, PLATO_MUTATIONS="{gamma: [")


def test_hyperparameters_merge_with_the_presets_name_by_name(write: Any) -> None:
    file = write(
        """
hyperparameters: {gamma: 0.95, lambda_: 0.92, kl_coeff: null}
mutations:
  lr: {type: loguniform, low: 2e-5, high: 2e-3}
  clip_param: null
"""
    )
    config = load_config({}, file, {})
    assert config.hyperparameters["gamma"] == 0.95
    assert config.hyperparameters["lambda"] == 0.92
    assert "kl_coeff" not in config.hyperparameters
    assert config.hyperparameters["lr"] == 1e-4
    assert config.mutations["lr"] == LogUniform(low=2e-5, high=2e-3)
    assert config.mutations["lambda"] == Uniform(low=0.9, high=1.0)
    assert "clip_param" not in config.mutations
    assert config.hyperparameters["clip_param"] == 0.2


def test_a_presets_starting_point_gives_way_to_the_users_mutation(write: Any) -> None:
    config = load_config({}, write("mutations: {lr: {type: uniform, low: 0.1, high: 0.2}}"), {})
    assert "lr" not in config.hyperparameters


def test_a_presets_keys_that_the_algorithm_lacks_are_dropped_and_the_users_refused(write: Any) -> None:
    config = load_config({"algorithm": "DQN", "preset": "plato"}, None, {})
    assert "clip_param" not in config.hyperparameters
    text = refusal({"algorithm": "DQN"}, write("\nhyperparameters:\n  clip_param: 0.2\n"))
    assert text.startswith("sweep.yaml line 3, hyperparameters.clip_param: DQN has no")


def test_the_seed_is_always_recorded() -> None:
    drawn = load_config({}, None, {}).seed
    assert drawn is not None
    assert 0 <= drawn < 2**31
    assert load_config({"seed": 7}, None, {}).seed == 7


def test_settings_go_by_the_names_of_the_contract_too(write: Any) -> None:
    assert load_config({}, write("num_workers: 2\nenv: Acrobot-v1\n"), {}).num_env_runners == 2
    assert "given already" in refusal({}, write("num_workers: 2\nnum_env_runners: 3\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n  b: [\n", ["sweep.yaml line 2", "YAML"]),
        ("max_iterations: 3\nmax_iteration: 4\n", ["line 2, max_iteration:", "did you mean max_iterations?"]),
        ("seed: 1\nmode: max\nseed: 2\n", ["line 3: seed", "line 1"]),
        ("- 1\n", ["holds list"]),
        ("just text\n", ["holds str"]),
        ("\n\nnum_tune_samples: none\n", ["line 3, num_tune_samples: 'none'", "at least 1"]),
        ("mutations:\n  lr: {type: uniform, low: 3, high: 1}\n", ["line 2, mutations.lr", "low 3.0"]),
        ("mutations:\n  gamma: {type: normal, low: 3}\n", ["line 2, mutations.gamma", "uniform|loguniform"]),
        ("mutations: [1]\n", ["line 1, mutations: [1]", "a mapping"]),
        ("hyperparameters:\n  lambda_: 1\n  lambda: 2\n", ["line 1, hyperparameters", "two names"]),
        ("true: 1\n", ["there is no such setting"]),
        ("preset: plat\n", ["line 1, preset", "did you mean plato?"]),
        ("? [1, 2]\n: 3\n", ["line 1", "plain name"]),
        ("a: &x [*y]\n", ["line 1", "undefined alias"]),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(write: Any, text: str, said: list[str]) -> None:
    answer = refusal({}, write(text))
    assert answer.startswith("sweep.yaml")
    for part in said:
        assert part in answer


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal({}, tmp_path / "none.yaml")
    assert "cannot be read" in refusal({}, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal({}, tmp_path / "binary.yaml")


def test_an_empty_file_is_no_settings(write: Any) -> None:
    assert load_config({"seed": 1}, write(""), {}) == load_config({"seed": 1}, None, {})


def test_numbers_are_read_as_people_write_them(write: Any) -> None:
    config = load_config({}, write("hyperparameters: {lr: 5e-5}\ntime_budget_s: 1e3\n"), {})
    assert config.hyperparameters["lr"] == 5e-5
    assert config.time_budget_s == 1000


@pytest.mark.parametrize(
    ("flags", "environ", "start"),
    [
        ({"num_tune_samples": "0"}, {}, "--num-tune-samples: '0'"),
        ({"seed": "x"}, {}, "--seed: 'x'"),
        ({}, {"PLATO_MODE": "most"}, "PLATO_MODE: 'most'"),
        ({}, {"MLFLOW_TRACKING_URI": "https://u:p@h"}, "MLFLOW_TRACKING_URI: this https URI"),
        ({"preset": "x"}, {}, "--preset: there is no preset 'x'"),
    ],
)
def test_a_wrong_value_is_told_by_the_name_it_was_given_with(
    flags: dict[str, Any], environ: dict[str, str], start: str
) -> None:
    assert refusal(flags, None, **environ).startswith(start)


def test_a_clash_with_the_preset_says_so(write: Any) -> None:
    file = write("hyperparameters: {train_batch_size: 100}\n")
    text = refusal({"test_local": True}, file)
    assert text.startswith("hyperparameters.sgd_minibatch_size (preset test-local)")


def test_more_than_one_mistake_is_counted() -> None:
    assert refusal({"seed": -1, "mode": "x"}).endswith("(and 1 more)")


def test_a_job_elsewhere_takes_neither_ray_nor_a_store_of_this_machine_from_the_shell() -> None:
    shell = {"RAY_ADDRESS": "auto", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    config = load_config({"compute": "aml"}, None, shell)
    assert (config.ray_address, config.tracking_uri) == (None, None)
    reached = load_config({"compute": "aml"}, None, {"MLFLOW_TRACKING_URI": "https://mlflow.example.com"})
    assert reached.tracking_uri == "https://mlflow.example.com"
    assert load_config({"compute": "local"}, None, shell).ray_address == "auto"


def test_job_variables_are_joined_name_by_name(tmp_path: Path) -> None:
    (file := tmp_path / "sweep.yaml").write_text("compute: aml\njob_variables: {compute: gpu, instance_count: 2}\n")
    config = load_config({"job_variables": {"instance_count": 4}}, file, {})
    assert config.job_variables == {"compute": "gpu", "instance_count": 4}

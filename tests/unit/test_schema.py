"""What RLlib's algorithms can be told, as read from the schema file."""

import pytest

from plato_core.training import schema


def test_the_known_algorithms_and_their_action_spaces() -> None:
    assert schema.algorithms() == ("PPO", "APPO", "IMPALA", "DQN", "SAC")
    assert schema.action_spaces("DQN") == ("Discrete",)
    assert schema.action_spaces("SAC") == ("Discrete", "Box")
    assert "Box" in schema.action_spaces("PPO")


def test_hyperparameters_go_by_canonical_names_and_by_aliases() -> None:
    assert schema.default("PPO", "num_sgd_iter") == schema.default("PPO", "num_epochs") == 30
    assert schema.default("PPO", "lambda") == 1.0
    assert schema.has_key("PPO", "minibatch_size")
    assert not schema.has_key("DQN", "minibatch_size")
    assert not schema.has_key("SAC", "lr")
    with pytest.raises(KeyError):
        schema.default("DQN", "clip_param")


def test_a_default_cannot_be_changed_by_its_reader() -> None:
    schema.default("DQN", "replay_buffer_config")["capacity"] = 1
    assert schema.default("DQN", "replay_buffer_config")["capacity"] == 50000


def test_what_a_sweep_sets_itself_is_no_hyperparameter() -> None:
    for algorithm in schema.algorithms():
        for name in ("env", "num_env_runners", "callbacks_class", "seed", "num_learners", "framework_str"):
            assert not schema.has_key(algorithm, name)


def test_ppo_logs_all_eleven_params_and_what_else_is_set() -> None:
    given = {"lr": 0.1, "num_epochs": 3, "gamma": 0.9, "model_config": {"fcnet_hiddens": [8], "a": {"b": 1}}}
    params = schema.trial_params("PPO", "CartPole-v1", given, num_cpus=0.5, num_gpus=0, num_workers=1)
    assert set(schema.CONTRACT_PARAMS) <= set(params)
    assert set(params) - set(schema.CONTRACT_PARAMS) == {
        "gamma",
        "model_config.fcnet_hiddens",
        "model_config.a.b",
    }
    assert params["lr"] == 0.1
    assert params["num_sgd_iter"] == 3
    assert params["train_batch_size"] == 4000
    assert (params["env"], params["num_cpus"], params["num_workers"]) == ("CartPole-v1", 0.5, 1)
    assert list(params) == sorted(params)


def test_an_algorithm_logs_no_param_that_it_does_not_have() -> None:
    params = schema.trial_params("DQN", "CartPole-v1", {}, num_cpus=1, num_gpus=0, num_workers=0)
    assert set(params) == {"env", "lr", "num_cpus", "num_gpus", "num_workers", "train_batch_size"}

"""What RLlib's algorithms can be told, read from a file that is generated from RLlib itself.

Reading it takes a millisecond, importing RLlib takes seconds: so a misspelled hyperparameter is refused at
once. `python -m plato_core.training.schema --write` regenerates the file from the RLlib that is installed.
"""

import copy
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plato_core.names import ALIASES, canonical

SCHEMA_FILE = Path(__file__).with_name("rllib_schema.json")
CONTRACT_PARAMS: tuple[str, ...] = (
    "clip_param", "env", "kl_coeff", "lambda", "lr", "num_cpus", "num_gpus", "num_sgd_iter", "num_workers",
    "sgd_minibatch_size", "train_batch_size",
)  # fmt: skip

_CONFIG_CLASSES = {
    "PPO": "ray.rllib.algorithms.ppo:PPOConfig",
    "APPO": "ray.rllib.algorithms.appo:APPOConfig",
    "IMPALA": "ray.rllib.algorithms.impala:IMPALAConfig",
    "DQN": "ray.rllib.algorithms.dqn:DQNConfig",
    "SAC": "ray.rllib.algorithms.sac:SACConfig",
}
# RLlib's catalogs: core/models/catalog.py (`_get_dist_cls_from_action_space`) for the on-policy ones; DQN's
# heads have `action_space.n` outputs (dqn_catalog.py); SAC's catalog raises for all but these two
# (sac_catalog.py).
_ACTION_SPACES = {
    "PPO": ("Discrete", "MultiDiscrete", "Box", "Dict", "Tuple"),
    "APPO": ("Discrete", "MultiDiscrete", "Box", "Dict", "Tuple"),
    "IMPALA": ("Discrete", "MultiDiscrete", "Box", "Dict", "Tuple"),
    "DQN": ("Discrete",),
    "SAC": ("Discrete", "Box"),
}
# Hyperparameters are the arguments of the config's `training()`, and these ones of its other methods.
_BESIDE_TRAINING = (
    "batch_mode", "clip_actions", "clip_rewards", "compress_observations", "explore",
    "gym_env_vectorize_mode",
    "metrics_num_episodes_for_smoothing", "min_sample_timesteps_per_iteration", "min_time_s_per_iteration",
    "min_train_timesteps_per_iteration", "normalize_actions", "num_envs_per_env_runner", "observation_filter",
    "rollout_fragment_length", "torch_skip_nan_gradients",
)  # fmt: skip
# Arguments of `training()` that only RLlib's old API stack reads, or that take Python objects.
_NOT_OFFERED = {
    "add_default_connectors_to_learner_pipeline", "before_learn_on_batch", "entropy_coeff_schedule",
    "hiddens", "learner_class", "learner_connector", "lr_schedule",
    "max_requests_in_flight_per_aggregator_actor", "minibatch_buffer_size", "model",
    "num_aggregator_actors_per_learner", "num_multi_gpu_tower_stacks", "optimization_config", "optimizer",
    "policy_model_config", "q_model_config", "train_batch_size",
}  # fmt: skip
_NOT_OFFERED_BY = {
    "APPO": {"decay", "epsilon", "learner_queue_size", "learner_queue_timeout", "momentum", "opt_type",
             "replay_buffer_num_slots", "replay_proportion"},
    "IMPALA": {"decay", "epsilon", "learner_queue_timeout", "momentum", "opt_type", "replay_buffer_num_slots",
               "replay_proportion"},
    # Off-policy learners make one pass over each batch that they draw from the replay buffer.
    "DQN": {"minibatch_size", "num_epochs", "shuffle_batch_per_epoch"},
    "SAC": {"lr", "minibatch_size", "num_epochs", "shuffle_batch_per_epoch"},  # three rates instead of one lr
}  # fmt: skip


@functools.cache
def _schema() -> dict[str, Any]:
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def algorithms() -> tuple[str, ...]:
    """Return the names of the algorithms that a sweep can train."""
    return tuple(_schema()["algorithms"])


def keys(algorithm: str) -> tuple[str, ...]:
    """Return the canonical names of the hyperparameters that `algorithm` has, sorted."""
    return tuple(_schema()["algorithms"][algorithm]["hyperparameters"])


def has_key(algorithm: str, name: str) -> bool:
    """Whether `algorithm` has the hyperparameter `name`, which may be an alias."""
    return canonical(name) in _schema()["algorithms"][algorithm]["hyperparameters"]


def default(algorithm: str, name: str) -> Any:
    """Return RLlib's default of a hyperparameter; None also stands for one that is unset there.

    Raises:
        KeyError: If the algorithm has no such hyperparameter.
    """
    return copy.deepcopy(_schema()["algorithms"][algorithm]["hyperparameters"][canonical(name)])


def action_spaces(algorithm: str) -> tuple[str, ...]:
    """Return the classes of gymnasium action spaces that `algorithm` can act in."""
    return tuple(_schema()["algorithms"][algorithm]["action_spaces"])


def trial_params(
    algorithm: str,
    env_name: str,
    hyperparameters: Mapping[str, Any],
    num_cpus: float,
    num_gpus: float,
    num_workers: int,
) -> dict[str, Any]:
    """Return the MLflow params of a trial.

    Args:
        algorithm: RLlib's name of the algorithm.
        env_name: The environment's name.
        hyperparameters: The trial's initial values by canonical name; all of them are logged.
        num_cpus: CPU slots of the trial.
        num_gpus: GPUs of the trial.
        num_workers: Remote env-runner processes of the trial.

    Returns:
        The eleven params of the MLflow contract as far as the algorithm has them, at the given value or
        RLlib's default, then whatever else is set; nested dictionaries flattened with `.`. Sorted by name.
    """
    params: dict[str, Any] = {name: default(algorithm, name) for name in CONTRACT_PARAMS if has_key(algorithm, name)}
    params |= {"env": env_name, "num_cpus": num_cpus, "num_gpus": num_gpus, "num_workers": num_workers}
    for name, value in hyperparameters.items():
        params |= _flatten(canonical(name), value)
    return dict(sorted(params.items()))


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flatten(f"{prefix}.{key}", item).items()}


def generate() -> str:
    """Return the schema file's text for the RLlib that is installed (imports it, which takes seconds)."""
    ray = importlib.import_module("ray")
    found = {}
    for algorithm, where in _CONFIG_CLASSES.items():
        module, name = where.split(":")
        config = getattr(importlib.import_module(module), name)()
        found[algorithm] = {
            "action_spaces": list(_ACTION_SPACES[algorithm]),
            "hyperparameters": _hyperparameters(algorithm, config),
        }
    return json.dumps({"ray": ray.__version__, "algorithms": found}, indent=1) + "\n"


def _hyperparameters(algorithm: str, config: Any) -> dict[str, Any]:
    """Defaults of what a user may set, under canonical names.

    The dictionary form of RLlib's config names GAE's lambda `lambda`, while the attribute is `lambda_`; the
    canonical name is the former.
    """
    deprecated = importlib.import_module("ray._common.deprecation").DEPRECATED_VALUE
    offered = set(_BESIDE_TRAINING)
    for cls in type(config).__mro__:
        if "training" in vars(cls):
            offered |= set(inspect.signature(vars(cls)["training"]).parameters)
    offered -= _NOT_OFFERED | _NOT_OFFERED_BY.get(algorithm, set())
    result: dict[str, Any] = {"model_config": {}}
    for name in offered:
        if name.startswith("_") or not hasattr(config, name):
            continue
        value = getattr(config, name)
        # -1 as the mark of a deprecated setting is shared with real values only by keys that are not offered.
        if value == deprecated and not isinstance(value, bool):
            continue
        if isinstance(value, int) and "_time_s_" in name:
            value = float(value)  # seconds need not be whole, whatever the default looks like
        result[ALIASES.get(name, name)] = value
    return dict(sorted(result.items()))


def main(argv: list[str]) -> int:
    """Print the regenerated schema, or with `--write` replace the file."""
    text = generate()
    if "--write" in argv:
        SCHEMA_FILE.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Whether an environment exists, can be made, and offers actions that an algorithm can take."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

from plato_core.errors import ConfigError
from plato_core.names import did_you_mean
from plato_core.training import schema


def check_environment(env_name: str, env_config: Mapping[str, Any], algorithm: str) -> None:
    """Check that `algorithm` can act in this environment, which is made once and closed again.

    Args:
        env_name: A gymnasium id; `module:Env-v0` imports the module first, as gymnasium does.
        env_config: Keyword arguments of the environment.
        algorithm: An algorithm that `schema.algorithms` names.

    Raises:
        ConfigError: If there is no such environment, it cannot be made, or its actions are not for the
            algorithm.
    """
    space = action_space(env_name, env_config)
    kind = type(space).__name__
    if kind in schema.action_spaces(algorithm):
        problem = _box_problem(space) if kind == "Box" else None
        if problem is not None:
            raise ConfigError(f"env_name: {env_name} takes {space}, {problem}; give another environment")
        return
    able = [name for name in schema.algorithms() if kind in schema.action_spaces(name)]
    way_out = f"give --algorithm {' or '.join(able)}" if able else "no algorithm here can; wrap its actions"
    accepted = " or ".join(schema.action_spaces(algorithm))
    raise ConfigError(
        f"algorithm: {algorithm} cannot act in {env_name}, whose actions are {space}: it needs {accepted}; {way_out}"
    )


def action_space(env_name: str, env_config: Mapping[str, Any]) -> Any:
    """Return the action space (a `gymnasium.Space`) of an environment.

    Raises:
        ConfigError: If there is no such environment, or it cannot be made.
    """
    import gymnasium

    try:
        # Gymnasium warns about everything, and environments print their banners: none of it is an answer.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            env = gymnasium.make(env_name, **env_config)
            try:
                return env.action_space
            finally:
                env.close()
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv):
        raise ConfigError(_unknown(env_name, list(gymnasium.registry))) from None
    except ModuleNotFoundError as error:
        module = env_name.partition(":")[0]
        if ":" in env_name and error.name is None:  # gymnasium's own, which says it at length
            raise ConfigError(
                f"env_name: the module {module!r} of {env_name!r} cannot be imported; install it, or correct the name"
            ) from None
        raise ConfigError(f"env_name: {env_name!r} needs {error.name}, which is not installed") from None
    except Exception as error:
        # Whatever an environment's own code raises concerns its name, its arguments or what is installed for
        # it.
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(env_name, str) or "alformed environment ID" in text:
            text = f"{text}; {_unknown(env_name, list(gymnasium.registry))}"
        raise ConfigError(f"env_name: {env_name!r} cannot be made with env_config {dict(env_config)}: {text}") from None


def _unknown(env_name: str, registered: list[str]) -> str:
    name = env_name.partition(":")[2] or env_name
    hint = did_you_mean(name, registered)
    if not hint:
        newest = {full.rpartition("-v")[0]: full for full in sorted(registered) if "/" not in full}
        hint = f" (there are {', '.join(newest.values())})"
    return f"env_name: there is no environment {env_name!r}{hint}; one from a module is written module:Env-v0"


def _box_problem(space: Any) -> str | None:
    """What RLlib's catalogs object to in a Box: whole numbers, and more than one dimension."""
    if space.dtype.kind in "iu":
        return "and whole numbers in a Box are not supported"
    if len(space.shape) > 1:
        return "and actions of more than one dimension are not supported"
    return None

"""What RLlib passes over in silence: a policy that is no number any more, and env runners that sample nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm

from plato_core.errors import TrialError
from plato_core.training.failures import failure_line
from plato_core.training.metrics import read_iteration

# Without a single environment step. A new env runner takes some 5 s; RLlib waits up to 60 s for a slow one.
NOTHING_SAMPLED_S = 120.0
_ASK_S = 20.0


def train(algorithm: Algorithm) -> Mapping[str, Any]:
    """Trains one iteration, and does not take one without any sample for one.

    Where all remote env runners are gone, RLlib restarts them and returns meanwhile; such an iteration would only
    use up the trial's budget.

    Raises:
        TrialError: Nothing was sampled for `NOTHING_SAMPLED_S`, or the policy is no number any more.
    """
    began = time.monotonic()
    while not read_iteration(result := algorithm.train(), 0.0, None).env_steps:
        if time.monotonic() - began > NOTHING_SAMPLED_S:
            raise TrialError(f"nothing was sampled for {NOTHING_SAMPLED_S:g} s: {_why(algorithm)}")
        time.sleep(1.0)
    if not _is_finite(algorithm):
        raise TrialError("the policy's weights have become NaN or infinite")
    return result


def _why(algorithm: Algorithm) -> str:
    """Asks the env runners directly: what they raise RLlib keeps to itself."""
    assert algorithm.env_runner_group is not None
    actors = [*algorithm.env_runner_group._worker_manager.actors().values()]
    until = time.monotonic() + _ASK_S
    while actors and time.monotonic() < until:
        try:
            ray.get(actors[0].sample.remote(), timeout=_ASK_S)
        except ActorUnavailableError:  # it is being restarted
            time.sleep(0.2)
            continue
        except (RayTaskError, RayActorError) as error:
            return failure_line(str(error))
        except GetTimeoutError:
            break
        actors.pop(0)  # it samples again
    return "the environment is too slow, or its env runners hang"


def _is_finite(algorithm: Algorithm) -> bool:
    """Whether all weights are numbers; a tenth of a millisecond for a small network.

    A return says so too late: that of the iteration in which weights became NaN was sampled with good ones, and a
    checkpoint written then would be handed on by an exploit.
    """
    assert algorithm.learner_group is not None
    finite: list[bool] = []

    def on_module(_: str, module: Any, **__: Any) -> None:
        finite.extend(bool(torch.isfinite(weights).all()) for weights in module.parameters())

    def on_learner(learner: Any, *_: Any) -> None:
        learner.module.foreach_module(on_module)

    algorithm.learner_group.foreach_learner(on_learner)
    return all(finite)

"""An environment in which nothing is left to chance, imported by trials' processes as `clockwork:Clockwork-v0`.

With it, and batches of whole episodes that are one minibatch each, PPO is a deterministic trainable: what it reports
follows from its weights, its optimizer's state and its hyperparameters alone.
"""

import math
import time
from typing import Any

import gymnasium
import numpy as np


class Clockwork(gymnasium.Env[np.ndarray, np.int64]):
    """Episodes of a fixed length in which there is one thing to do, and the reward depends on the step alone.

    Args:
        length: Steps of an episode.
        step_s: Seconds that each takes.
    """

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(1)

    def __init__(self, length: int = 16, step_s: float = 0.0005) -> None:
        self._length, self._step_s, self._steps = length, step_s, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self._step_s)
        self._steps += 1
        reward = 1.0 + math.sin(self._steps)
        return self._observation(), reward, self._steps >= self._length, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self._steps / self._length, 1.0], np.float32)


gymnasium.register("Clockwork-v0", entry_point=f"{__name__}:Clockwork", disable_env_checker=True)

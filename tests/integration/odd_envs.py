"""Environments whose returns are late, imported by trials' processes as `odd_envs:Late-v0`."""

from typing import Any

import gymnasium
import numpy as np


class Late(gymnasium.Env[np.ndarray, np.int64]):
    """Episodes of a fixed length, `reward` at each step whatever is done.

    Args:
        length: Steps of an episode: with batches of fewer, the first iterations know no return.
        reward: At each step.
    """

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 200, reward: float = 1.0) -> None:
        self._length, self._reward, self._steps = length, reward, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._observation(), self._reward, self._steps >= self._length, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)


gymnasium.register("Late-v0", entry_point=f"{__name__}:Late", disable_env_checker=True)

"""Environments whose returns are late, or that fail; imported by trials' processes as `odd_envs:Late-v0`."""

import os
import time
from pathlib import Path
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


class Fragile(Late):
    """Does what a file asks for, once: `<folder>/<pid>` of its process at the next step, `<folder>/make` when made.

    Args:
        folder: Where to look. The file says `raise`, `exit`, or `wait` and the name of a file there to wait for.
        length: Steps of an episode.
        broken: Whether each step raises, and needs no file for it.
    """

    def __init__(self, folder: str, length: int = 20, broken: bool = False) -> None:
        super().__init__(length)
        self._folder, self._broken = Path(folder), broken
        if self._asked("make"):
            raise ValueError("no sensor\nnot even a spare one")

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        what, _, name = self._asked(str(os.getpid())).partition(" ")
        if what == "raise" or self._broken:
            raise ValueError("broken sensor")
        if what == "exit":
            os._exit(3)
        deadline = time.monotonic() + 60
        while what == "wait" and not (self._folder / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return super().step(action)

    def _asked(self, name: str) -> str:
        """What the file asks for; it is gone then, so that of several processes one alone does it."""
        mine = self._folder / f"{name}-{os.getpid()}-done"
        try:
            (self._folder / name).rename(mine)
        except FileNotFoundError:
            return ""
        return mine.read_text()


gymnasium.register("Fragile-v0", entry_point=f"{__name__}:Fragile", disable_env_checker=True)


class SlowStart(Late):
    """Takes seconds to be made the first time in a process, but for the first process of all.

    Args:
        folder: Where processes leave word of themselves.
        seconds: How long it takes.
    """

    def __init__(self, folder: str, seconds: float) -> None:
        super().__init__(length=20)
        mine = Path(folder) / str(os.getpid())
        if mine.exists():
            return
        mine.touch()
        try:
            (Path(folder) / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(seconds)


gymnasium.register("SlowStart-v0", entry_point=f"{__name__}:SlowStart", disable_env_checker=True)

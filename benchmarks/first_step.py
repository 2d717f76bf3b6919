"""CartPole that writes down when its process first makes and steps it: `first_step:Stamped-v0` to gymnasium."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import psutil
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

ENV_NAME = "first_step:Stamped-v0"
FOLDER_VARIABLE = "BENCH_STAMPS"
_stamped: set[str] = set()


class Stamped(CartPoleEnv):
    """CartPole with stamps of the whole process: how many environments it makes does not matter."""

    def __init__(self, **settings: Any) -> None:
        _stamp("made")
        super().__init__(**settings)

    def step(self, action: Any) -> Any:
        """Steps, and stamps the first."""
        _stamp("stepped")
        return super().step(action)


def _stamp(what: str) -> None:
    if what in _stamped:
        return
    now = time.time()
    _stamped.add(what)
    if (folder := os.environ.get(FOLDER_VARIABLE)) is not None:
        stamp = {"what": what, "time": now, "pid": os.getpid(), "process_began": psutil.Process().create_time()}
        Path(folder, f"{what}-{os.getpid()}.json").write_text(json.dumps(stamp))


gymnasium.register("Stamped-v0", entry_point=Stamped, max_episode_steps=500)

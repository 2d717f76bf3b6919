"""Whether every node of a cluster can train this sweep's trials: it has the code, and sees the sweep's folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from plato_core.errors import SweepError
from plato_core.sweep.folder import CONFIG_NAME
from plato_core.training.failures import failure_line

# Mounted storage may show a new file to another node a little later.
SEEN_WITHIN_S = 60.0
# A process of Ray's starts in some seconds.
_ANSWER_WITHIN_S = 180.0


def check_nodes(nodes: Sequence[dict[str, Any]], sweep_dir: Path, seen_within_s: float = SEEN_WITHIN_S) -> None:
    """Checks each node from a process on it. Else a trial there would write its checkpoints where nobody finds them.

    Args:
        nodes: As `ray.nodes()` describes them.
        sweep_dir: The sweep's folder, with its config.
        seen_within_s: How long a node may take to see it, in seconds.

    Raises:
        SweepError: A node cannot import this project, or does not see the folder.
    """
    for question in [Question(node, sweep_dir, seen_within_s) for node in nodes]:
        question.answer()


class Question:
    """A node that is being asked, by a process on it.

    Args:
        node: As `ray.nodes()` describes it.
        sweep_dir: The sweep's folder, with its config.
        seen_within_s: How long the node may take to see it, in seconds.
    """

    def __init__(self, node: dict[str, Any], sweep_dir: Path, seen_within_s: float = SEEN_WITHIN_S) -> None:
        self._address, self._sweep_dir = node["NodeManagerAddress"], sweep_dir
        task = _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        self._seen = task.remote(str(sweep_dir / CONFIG_NAME), seen_within_s)
        self._deadline = time.monotonic() + _ANSWER_WITHIN_S

    def is_open(self) -> bool:
        """Returns whether the node may still answer."""
        return time.monotonic() < self._deadline and not ray.wait([self._seen], timeout=0.0)[0]

    def answer(self) -> None:
        """Waits for the answer.

        Raises:
            SweepError: The node cannot import this project, does not see the folder, or does not answer.
        """
        try:
            seen = ray.get(self._seen, timeout=max(0.0, self._deadline - time.monotonic()))
        except GetTimeoutError:
            raise SweepError(f"the Ray node {self._address} answers nothing within {_ANSWER_WITHIN_S:g} s") from None
        except RayError as error:
            raise SweepError(
                f"the Ray node {self._address} cannot run this project: {failure_line(str(error))}; it needs the same "
                "environment, and the project's folder at the same path"
            ) from None
        if not seen:
            raise SweepError(
                f"the Ray node {self._address} does not see {self._sweep_dir}; give with --storage-path a folder that "
                "all nodes share at the same path"
            )


@ray.remote(num_cpus=0, max_retries=0)
def _sees(path: str, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not (seen := Path(path).is_file()) and time.monotonic() < deadline:
        time.sleep(1.0)
    return seen

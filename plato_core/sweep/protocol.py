"""What whoever runs a sweep is told: its process in two JSON lines on its standard input, a job in one variable."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

# In the sweep's folder: what is still to be sent to MLflow. It is gone when all of it is there.
TRACKING_FOLDER = "tracking"


class Prepare(BaseModel):
    """The first line: what will be run. Ray is started and warmed with it.

    Attributes:
        sweep_id: The sweep's name.
        sweep_dir: Its folder, which exists.
        ray_temp_dir: Where a local Ray keeps its session; the parent removes it.
        config: The resolved sweep config.
    """

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    sweep_dir: str
    ray_temp_dir: str
    config: dict[str, Any]


class Go(BaseModel):
    """The second line: run it, and track it there. After it the parent keeps the pipe open while it lives."""

    model_config = ConfigDict(frozen=True)

    tracking_uri: str
    experiment_id: str
    parent_run_id: str


class SweepOrder(BaseModel):
    """All of it at once, for a sweep on other machines.

    Attributes:
        sweep_id: The sweep's name; its folder on those machines is called so too.
        config: The resolved sweep config; where the folder is and on which Ray it runs is theirs to say.
        go: Where it is tracked.
        ended: The trials whose runs somebody has ended meanwhile, as its last job had died: trial id to run id.
    """

    model_config = ConfigDict(frozen=True)

    sweep_id: str
    config: dict[str, Any]
    go: Go
    ended: dict[str, str] = {}

"""Fetch the best checkpoint of an experiment: `get_top_run` and `list_experiments`, and both as a script.

::

    python flows/get_mlflow_artifacts.py                        # the experiments, the latest active last
    python flows/get_mlflow_artifacts.py --experiment pbt_ppo   # its best checkpoint, to model_checkpoints/
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from plato_core.errors import PlatoError
from plato_core.fetch import (
    DEFAULT_RANK_METRIC,
    ExperimentSummary,
    TopRun,
    get_top_run,
    list_experiments,
)
from plato_core.selection import Mode

__all__ = ["ExperimentSummary", "TopRun", "get_top_run", "list_experiments"]

BAD_INPUT = 2

app = App(
    name="get_mlflow_artifacts.py",
    help="Fetch the best checkpoint of an experiment from its tracking store, and verify it.",
    version_flags=[],
    result_action="return_value",
)


@app.default
def fetch(
    *,
    experiment: str | None = None,
    local_path: Path = Path("model_checkpoints"),
    rank_metric: str = DEFAULT_RANK_METRIC,
    mode: Mode = "max",
    parent_run_id: str | None = None,
    tracking_uri: Annotated[str | None, Parameter(show_default=False)] = None,
    workspace_config: Annotated[Path | None, Parameter(show_default=False)] = None,
) -> None:
    """Without --experiment, list the experiments, the latest active last.

    Args:
        experiment: The experiment's name.
        local_path: A folder of results; the checkpoint lands in LOCAL_PATH/RUN_ID/checkpoint_NNNNNN.
        rank_metric: The metric that decides, by each run's latest value; with or without "metrics.".
        mode: Whether a high (max) or a low (min) value is good.
        parent_run_id: Look only among the trials of this sweep.
        tracking_uri: The store; by default PLATO_TRACKING_URI, the Azure ML workspace of a config.json here or in a
            parent folder, MLFLOW_TRACKING_URI or ./mlflow.db.
        workspace_config: The config.json of an Azure ML workspace, or a folder to look for it from.
    """
    if experiment is None:
        for summary in list_experiments(tracking_uri=tracking_uri, workspace_config=workspace_config):
            print(f"{summary.last_activity.astimezone():%Y-%m-%d %H:%M}  {summary.name}")
        return
    top = get_top_run(
        experiment,
        local_path,
        rank_metric,
        mode=mode,
        parent_run_id=parent_run_id,
        tracking_uri=tracking_uri,
        workspace_config=workspace_config,
    )
    for warning in top.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"run {top.run_id}, {rank_metric.removeprefix('metrics.')} {top.rank_value:g}, "
        f"checkpoint of iteration {top.iteration}:",
        file=sys.stderr,
    )
    print(top.checkpoint_path)


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit code: 0 done, 1 failed, 2 bad input."""
    from cyclopts import CycloptsError

    logging.getLogger("stamina").setLevel(logging.ERROR)  # it says of each retry that there is one, not of what
    try:
        app(arguments, exit_on_error=False)
    except CycloptsError:  # it has printed what is wrong
        return BAD_INPUT
    except PlatoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

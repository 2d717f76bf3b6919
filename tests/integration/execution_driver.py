"""Has a sweep executed as the flow does, and prints what it tells: a line of JSON each, the last says how it ended.

Arguments: a file with the flow's parameters; how many results to take before it is told to stop, or `all`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from plato_core.aml.sweepsettings import tracked
from plato_core.config import SweepConfig
from plato_core.config_sources import load_config
from plato_core.errors import PlatoError
from plato_core.executions import execution_of
from plato_core.resuming import read_parent, write_parent
from plato_core.sweep.events import Event, Result
from plato_core.sweep.protocol import Go
from plato_core.tracking import parent
from plato_core.tracking.client import make_client


def main(settings: Path, most: float) -> None:
    config = tracked(load_config(json.loads(settings.read_text()), None, {}))
    outcome, error = "finished", ""
    with execution_of(config, at_once=False) as execution:
        opened = read_parent(execution.sweep_dir) or parent.open_parent(
            config.store_uri, config.experiment_name, execution.sweep_id, {}, {}
        )
        write_parent(execution.sweep_dir, opened)
        execution.go(Go(tracking_uri=config.store_uri, experiment_id=opened.experiment_id, parent_run_id=opened.run_id))
        results = 0
        try:
            for event in execution.events():
                tell(event)
                results += isinstance(event, Result)
                if results >= most:
                    for last in execution.stop():
                        tell(last)
                    outcome = "stopped"
                    break
        except PlatoError as failure:
            outcome, error = type(failure).__name__, str(failure)
    print(json.dumps({"outcome": outcome, "error": error, "runs": runs_of(config, opened)}), flush=True)


def tell(event: Event | None) -> None:
    if event is not None:
        print(event.model_dump_json(), flush=True)


def runs_of(config: SweepConfig, opened: parent.ParentRun) -> list[dict[str, object]]:
    client = make_client(config.store_uri)
    found = client.search_runs([opened.experiment_id], f"tags.mlflow.parentRunId = '{opened.run_id}'")
    return [
        {
            "status": run.info.status,
            "steps": [point.step for point in client.get_metric_history(run.info.run_id, "training_iteration")],
        }
        for run in found
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), float("inf") if sys.argv[2] == "all" else int(sys.argv[2]))

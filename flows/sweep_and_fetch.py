"""The flow `sweep`: train a population, pick the best policy, fetch its verified checkpoint.

As a script, `python flows/sweep_and_fetch.py --help` is its command line; imported, it only defines the flow.
"""

if __name__ == "__main__":
    # Before anything below: help and mistakes in the input need no Prefect, which takes seconds to load.
    from plato_core.cli import sweep_main

    raise SystemExit(sweep_main())

import secrets
import time

from prefect import flow

from plato_core.config import SweepConfig
from plato_core.errors import SweepStopped
from plato_core.flow_signature import with_fields_as_parameters
from plato_core.result import SweepResult
from plato_core.sweep.events import SweepEnded
from plato_core.sweep.process import SweepProcess, adopt
from plato_core.tracking.parent import ParentRun
from tasks.checkpoint import download_checkpoint, remarks
from tasks.parent_run import close_parent_run, open_parent_run
from tasks.selection import select_top_run
from tasks.sweep import run_sweep


@flow(name="sweep", description="Train a population, pick the best policy, fetch its verified checkpoint.")
@with_fields_as_parameters(SweepConfig)
def sweep(**parameters: object) -> SweepResult:
    """Runs one sweep from its parent run to a verified checkpoint on this machine."""
    began = time.monotonic()
    config = SweepConfig.from_flow_parameters(parameters)
    if config.seed is None:  # what was drawn must be on record
        config = config.model_copy(update={"seed": secrets.randbelow(2**31)})
    with adopt(config) as process:
        opened = open_parent_run(config, process.sweep_id)
        try:
            result = _sweep(config, process, opened, began)
        except Exception as error:
            status = "KILLED" if isinstance(error, SweepStopped) else "FAILED"
            close_parent_run(config, process, opened, status, tags={"plato.error": str(error)[:500]})
            raise
        except BaseException:  # Ctrl-C, SIGTERM, and Prefect's word that the run is cancelled
            close_parent_run(config, process, opened, "KILLED")
            raise
    return result


def _sweep(config: SweepConfig, process: SweepProcess, opened: ParentRun, began: float) -> SweepResult:
    ended: SweepEnded = run_sweep(config, process, opened)
    selection = select_top_run(config, opened)
    downloaded = download_checkpoint(config, selection)
    result = SweepResult(
        sweep_id=process.sweep_id,
        parent_run_id=opened.run_id,
        experiment_name=config.experiment_name,
        top_run_id=selection.run.run_id,
        rank_metric=config.rank_metric_name,
        rank_value=selection.rank_value,
        checkpoint_path=str(downloaded.path),
        checkpoint_iteration=selection.checkpoint.iteration,
        tracking_uri=config.store_uri,
        trials=ended.trials,
        wall_s=round(time.monotonic() - began, 3),
        fit_s=round(ended.fit_s, 3),
        training_slot_s=round(ended.training_slot_s, 3),
        slots=int(ended.slots),
        sweep_efficiency=round(ended.training_slot_s / (ended.slots * ended.fit_s), 4),
        experiment_id=opened.experiment_id,
        winner=selection.run.name,
        warnings=(*selection.warnings, *remarks(downloaded)),
    )
    left = close_parent_run(
        config,
        process,
        opened,
        "FINISHED",
        tags={"plato.top_run_id": result.top_run_id, "plato.checkpoint": selection.checkpoint.artifact_path},
        metrics={
            f"best_{result.rank_metric}": result.rank_value,
            "fit_s": result.fit_s,
            "training_slot_s": result.training_slot_s,
            "sweep_efficiency": result.sweep_efficiency,
        },
    )
    return result if left is None else result.model_copy(update={"warnings": (*result.warnings, left)})

"""Selecting the winner among a sweep's trials."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from plato_core.config import SweepConfig
from plato_core.selection import Selection, choose
from plato_core.tracking import client as tracking_client
from plato_core.tracking import queries
from plato_core.tracking.parent import ParentRun
from tasks.retries import DELAY_S, patiently, store_may_come_back


@task(
    name="select the top run",
    task_run_name="select the top run by {config.rank_metric_name}",
    retries=2,
    retry_delay_seconds=DELAY_S,
    retry_condition_fn=store_may_come_back,
    cache_policy=NO_CACHE,
)
def select_top_run(config: SweepConfig, opened: ParentRun, patience_s: float = 0.0) -> Selection:
    """Selects the best finished child of the parent run by the rank metric, and its best complete checkpoint.

    Args:
        config: The resolved config.
        opened: The parent run.
        patience_s: How long a store that is away or throttles is waited for.

    Raises:
        SelectionError: None qualifies.
    """
    selection = patiently(lambda: _select(config, opened), patience_s)
    for warning in selection.warnings:
        get_run_logger().warning(warning)
    return selection


def _select(config: SweepConfig, opened: ParentRun) -> Selection:
    client = tracking_client.make_client(config.store_uri)
    runs = queries.children_of(client, [opened.experiment_id], opened.run_id)
    return choose(
        runs,
        config.rank_metric,
        config.mode,
        lambda run_id: queries.complete_checkpoints(client, run_id),
        among=f"the children of run {opened.run_id}",
    )

"""Downloading and verifying the winner's checkpoint."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from plato_core.config import SweepConfig
from plato_core.selection import Selection
from plato_core.tracking import client as tracking_client
from plato_core.tracking.transfer import DownloadedCheckpoint
from plato_core.tracking.transfer import download_checkpoint as download
from tasks.retries import DELAY_S, patiently, store_may_come_back


@task(
    name="download the checkpoint",
    task_run_name="download {selection.checkpoint.artifact_path}",
    retries=2,
    retry_delay_seconds=DELAY_S,
    retry_condition_fn=store_may_come_back,
    cache_policy=NO_CACHE,
)
def download_checkpoint(config: SweepConfig, selection: Selection, patience_s: float = 0.0) -> DownloadedCheckpoint:
    """Downloads the selected checkpoint to `<local path>/<run id>/checkpoint_NNNNNN` and checks every file.

    Args:
        config: The resolved config.
        selection: What was selected.
        patience_s: How long a store that is away or throttles is waited for.

    Raises:
        CheckpointError: What the store holds does not match the manifest.
    """
    chosen = selection.checkpoint

    def fetch() -> DownloadedCheckpoint:
        client = tracking_client.make_client(config.store_uri)
        return download(client, chosen.run_id, chosen.artifact_path, config.local_folder, chosen.manifest)

    downloaded = patiently(fetch, patience_s)
    for remark in remarks(downloaded):
        get_run_logger().warning(remark)
    return downloaded


def remarks(downloaded: DownloadedCheckpoint) -> list[str]:
    """Returns what a person should know of a download that was not a plain one."""
    if downloaded.reused:
        return [f"{downloaded.path} stands there already and verifies; it is used again"]
    if downloaded.replaced is not None:
        return [f"what stood at {downloaded.path} did not verify; it is now {downloaded.replaced}"]
    return []

"""Writing down what came of a sweep, for whoever looks at it later."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from plato_core.config import SweepConfig
from plato_core.report import markdown, mlflow_run, prefect_artifacts
from plato_core.report.picture import learning_curves
from plato_core.report.progress import SweepProgress
from plato_core.report.publisher import Publisher, finish
from plato_core.result import SweepResult
from plato_core.tracking.parent import ParentRun

SUMMARY_NAME = "summary.md"
# The stores get so long to take it. One that is away is known to be by then; an artifact takes a second at most.
PATIENCE_S = 10.0
# The same of a sweep that was told to stop: somebody waits for its end.
STOPPED_PATIENCE_S = 3.0


@task(name="write the summary", task_run_name="write the summary of {folder.name}", cache_policy=NO_CACHE)
def write_summary(
    config: SweepConfig,
    opened: ParentRun,
    progress: SweepProgress,
    folder: Path,
    result: SweepResult | None = None,
    error: str | None = None,
    patience_s: float = PATIENCE_S,
) -> list[Path]:
    """Writes the summary and the learning curves to the sweep's folder, its parent run and Prefect's UI.

    What cannot be written is a warning in the log: it is never the sweep's end.

    Args:
        config: The resolved config.
        opened: The parent run.
        progress: What was seen of the sweep.
        folder: The sweep's folder.
        result: What it came to; None if it failed or was stopped.
        error: Why it came to nothing.
        patience_s: How long MLflow and Prefect may take for it, in seconds.

    Returns:
        The files.
    """
    logger = get_run_logger()
    try:
        return _write(config, opened, progress, folder, result, error, patience_s)
    except Exception as failure:
        logger.warning(f"the summary was not written: {failure}")
        return []


def _write(
    config: SweepConfig,
    opened: ParentRun,
    progress: SweepProgress,
    folder: Path,
    result: SweepResult | None,
    error: str | None,
    patience_s: float,
) -> list[Path]:
    logger, snapshot = get_run_logger(), progress.snapshot()
    title = f"{config.experiment_name}: {config.algorithm} on {config.env_name}, sweep {folder.name}"
    text = partial(markdown.summary, title, snapshot, result, error)
    picture = learning_curves(snapshot)
    files = {SUMMARY_NAME: text(None if picture is None else markdown.PICTURE_NAME).encode()}
    if picture is not None:
        files[markdown.PICTURE_NAME] = picture
    paths = [folder / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    publishers = [Publisher(mlflow_run.NAME, partial(mlflow_run.summarizing, config, opened, snapshot, paths), logger)]
    if (run := prefect_artifacts.PrefectRun.current(config)) is not None:
        shown = text(None if picture is None else markdown.data_uri(picture))
        session = partial(prefect_artifacts.summarizing, run, config, opened, snapshot, shown)
        publishers.append(Publisher(prefect_artifacts.NAME, session, logger))
    finish(publishers, patience_s)
    return paths

"""The sweep in Prefect's UI: progress, leaderboard, the way to MLflow, and at the end a summary, as artifacts.

Each is made once in a run and then changed in place; made anew each time, its versions would pile up.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.context import get_task_and_flow_run_ids

from plato_core.config import SweepConfig
from plato_core.report.facts import Snapshot
from plato_core.report.links import run_page
from plato_core.report.markdown import leaderboard_records, way_to_see
from plato_core.tracking.parent import ParentRun

NAME = "the Prefect UI"
EVERY_S = 3.0
_TIMEOUT_S = 3.0
_Content = tuple[Any, str | None]


@dataclass(frozen=True)
class PrefectRun:
    """The run that artifacts belong to.

    Attributes:
        flow_run_id: The flow's.
        task_run_id: The task's; None outside of a task.
        group: What the keys of its artifacts begin with, which Prefect's page of artifacts groups them by.
    """

    flow_run_id: UUID
    task_run_id: UUID | None
    group: str

    @classmethod
    def current(cls, config: SweepConfig) -> "PrefectRun | None":
        """Return the run that this code is in; None outside of any flow."""
        task_run_id, flow_run_id = get_task_and_flow_run_ids()
        if flow_run_id is None:
            return None
        slug = re.sub(r"[^a-z0-9]+", "-", config.experiment_name.lower()).strip("-")
        return cls(flow_run_id, task_run_id, slug or "sweep")


class _Board:
    """The artifacts of one flow run."""

    def __init__(self, client: SyncPrefectClient, run: PrefectRun) -> None:
        self._client = client
        self._run = run
        self._ids: dict[str, UUID] = {}
        self._shown: dict[str, _Content] = {}

    def put(self, name: str, kind: str, data: Any, description: str | None = None) -> None:
        """Show `data`, unless it is what is shown already."""
        if self._shown.get(name) == (data, description):
            return
        known = self._ids.get(name) or self._find(name)
        if known is None or not self._update(known, data, description):
            known = self._create(name, kind, data, description)
        self._ids[name] = known
        self._shown[name] = (data, description)

    def _key(self, name: str) -> str:
        return f"{self._run.group}-{name}"

    def _find(self, name: str) -> UUID | None:
        """Look for what this flow run has made already: by another task, or without an answer to who made it."""
        of_run = {"key": {"any_": [self._key(name)]}, "flow_run_id": {"any_": [self._run.flow_run_id]}}
        found = self._client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(of_run), limit=1)
        return found[0].id if found else None

    def _create(self, name: str, kind: str, data: Any, description: str | None) -> UUID:
        artifact = ArtifactCreate(
            key=self._key(name),
            type=kind,
            data=data,
            description=description,
            flow_run_id=self._run.flow_run_id,
            task_run_id=self._run.task_run_id,
        )
        return self._client.create_artifact(artifact).id

    def _update(self, artifact_id: UUID, data: Any, description: str | None) -> bool:
        """Change an artifact; False if somebody has deleted it."""
        # Not by `client.update_artifact`, which makes an event of each change, with all of the data in it.
        change = ArtifactUpdate(data=data, description=description).model_dump(mode="json", exclude_unset=True)
        try:
            self._client.request("PATCH", "/artifacts/{id}", json=change, path_params={"id": artifact_id})
        except PrefectHTTPStatusError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:
                raise
            return False
        return True


def following(
    run: PrefectRun, config: SweepConfig, opened: ParentRun, look: Callable[[], Snapshot]
) -> AbstractContextManager[Callable[[], None]]:
    """Open what shows a running sweep, for a `Publisher`.

    Args:
        run: Where the artifacts belong.
        config: The sweep's.
        opened: Its parent run in MLflow.
        look: Returns its state.
    """
    return _session(run, lambda board: _show(board, config, opened, look()))


def summarizing(
    run: PrefectRun, config: SweepConfig, opened: ParentRun, snapshot: Snapshot, markdown: str
) -> AbstractContextManager[Callable[[], None]]:
    """Open what shows the summary of a sweep that has ended, for a `Publisher`.

    Its last figures are shown once more, for a server that was away at the sweep's end.

    Args:
        run: Where the artifact belongs.
        config: The sweep's.
        opened: Its parent run in MLflow.
        snapshot: Its last state.
        markdown: The summary.
    """

    def show(board: _Board) -> None:
        board.put("summary", "markdown", markdown, "What came of the sweep.")
        _show(board, config, opened, snapshot)

    return _session(run, show)


def _show(board: _Board, config: SweepConfig, opened: ParentRun, snapshot: Snapshot) -> None:
    page = run_page(config.store_uri, opened.experiment_id, opened.run_id)
    link = way_to_see(page, "the sweep's parent run", config.experiment_name)
    board.put("mlflow", "markdown", link, "The sweep in MLflow: its trials are the children of this run.")
    board.put("progress", "progress", round(100 * snapshot.fraction, 1), snapshot.headline)
    table = json.dumps(leaderboard_records(snapshot.rows, snapshot.facts))
    board.put("leaderboard", "table", table, "The trials, best first.")


@contextmanager
def brief_client() -> Iterator[SyncPrefectClient]:
    """Open a client for what a sweep can do without: it tries once and gives up after 3 s without an answer.

    Prefect's own time limit and retries would hold whoever asks for minutes while the server hangs.

    Raises:
        httpx.HTTPError: In use: the server does not answer, or refuses.
        PrefectException: In use: the same, for some refusals.
    """
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings={"timeout": httpx.Timeout(_TIMEOUT_S)}, sync_client=True) as client,
    ):
        yield client


@contextmanager
def _session(run: PrefectRun, show: Callable[[_Board], None]) -> Iterator[Callable[[], None]]:
    with brief_client() as client:  # the next news is retry enough
        board = _Board(client, run)
        yield lambda: show(board)

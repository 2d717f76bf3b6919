"""Reading a sweep's runs back from the MLflow store, as a user does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Tracked:
    """A sweep's runs: the parent's and its children's, in the order of their start."""

    client: MlflowClient
    parent: Run
    children: list[Run]

    def history(self, run: Run, name: str) -> list[tuple[int, float]]:
        """Returns a series' steps and values, in order of the step."""
        points = self.client.get_metric_history(run.info.run_id, name)
        return sorted((point.step, point.value) for point in points)

    def artifacts(self, run: Run, path: str | None = None) -> list[str]:
        return [info.path for info in self.client.list_artifacts(run.info.run_id, path)]

    def text(self, run: Run, artifact: str, folder: Path) -> str:
        return Path(self.client.download_artifacts(run.info.run_id, artifact, str(folder))).read_text()


def tracked(uri: str, experiment: str = "pbt_ppo") -> Tracked:
    """Returns the one sweep of an experiment."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = sorted(client.search_runs([found.experiment_id]), key=lambda run: run.info.start_time)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return Tracked(client, parent, children)


def statuses(uri: str) -> list[str]:
    """Returns the status of every run in a store, also of one that has no experiment yet."""
    client = MlflowClient(tracking_uri=uri)
    ids = [str(experiment.experiment_id) for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(ids)] if ids else []

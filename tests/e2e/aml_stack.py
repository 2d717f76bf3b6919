"""This project on an emulated Azure ML as its users have it: a Prefect server, the pool, a worker, a laptop.

The deployment `sweep/aml` is the project's own, made small; its jobs run on nodes of one CPU each.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aml_bed import Emulator, running_emulator
from aml_jobs import laptop_env
from aml_worker_bed import POOL, Bed, GuardedServer
from product import free_port
from stack import ROOT, project_copy

from plato_core.training.metrics import EPISODE_METRICS

PASSWORD = "the-password-of-this-server"
LEFT_ABOUT = "a-password-that-somebody-left-in-the-project"
SHORT: dict[str, Any] = {
    "preset": "test-local",
    "num_tune_samples": 3,
    "max_iterations": 6,
    "stop_reward": 501,  # out of reach
    "perturbation_interval": 2,
    "seed": 3,
    "experiment_name": "on-the-cluster",
    "hyperparameters": {
        "train_batch_size": 512,
        "minibatch_size": 128,
        "num_epochs": 2,
        "num_envs_per_env_runner": 8,
        "model_config": {"fcnet_hiddens": [16], "fcnet_activation": "tanh", "vf_share_layers": False},
    },
}
# In processes of their own: the SDKs keep what they know of a workspace.
RUNS = """
import json, sys
from plato_core.reading import reading_uri
from plato_core.tracking.client import make_client
client = make_client(reading_uri(None, None))
experiment = client.get_experiment_by_name(sys.argv[1])
found = []
for run in client.search_runs([experiment.experiment_id]):
    series = {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    } if "mlflow.parentRunId" in run.data.tags else {}
    found.append({"id": run.info.run_id, "status": run.info.status, "tags": run.data.tags, "series": series,
                  "params": run.data.params})
print(json.dumps(found))
"""
NODE = "--num-cpus=1 --object-store-memory=100000000"


def on_a_laptop(emulator: Emulator, folder: Path, code: str, *arguments: str) -> Any:
    """Runs code in a laptop's folder, with the project's flows to import; returns the JSON of its last line."""
    environment = laptop_env(emulator)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": f"{ROOT / 'flows'}:{environment['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=400.0,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class AmlStack:
    """All of it, running.

    Args:
        folder: Of everything that it leaves.
        bed: Server, workspace and worker.
    """

    folder: Path
    bed: Bed

    @property
    def emulator(self) -> Emulator:
        return self.bed.emulator

    @property
    def worker_log(self) -> str:
        return (self.bed.folder.parent / "worker.log").read_text()

    def jobs_of(self, run_id: str) -> list[str]:
        """The names of a flow run's jobs, the first attempt's first."""
        return sorted(name for name in self.emulator.jobs() if run_id in name)

    def sweeps(self) -> list[Path]:
        """The folders of all sweeps, in the datastore."""
        return sorted(path.parent for path in self.emulator.datastore("plato/sweeps").glob("*/config.yaml"))

    def laptop(self, name: str) -> Path:
        """A new folder with nothing but the workspace's `config.json`, as the portal gives it."""
        return self.emulator.workspace_config(self.folder / name).parent

    def on_the_laptop(self, folder: Path, code: str, *arguments: str) -> Any:
        return on_a_laptop(self.emulator, folder, code, *arguments)

    def runs_of(self, experiment: str, laptop: str) -> list[dict[str, Any]]:
        """All runs of an experiment in the workspace, with the series of the trials."""
        return self.on_the_laptop(self.laptop(laptop), RUNS, experiment)

    def messages(self, run_id: str) -> list[str]:
        """The flow run's log in Prefect."""
        return [entry["message"] for entry in self.bed.log_of(run_id)]


@contextlib.contextmanager
def running_aml_stack(folder: Path) -> Iterator[AmlStack]:
    """A stack that is up, with the pool made, the deployment applied and the worker started, as users type it.

    Args:
        folder: An empty folder.
    """
    (here := folder / "desk").mkdir()
    (home := folder / "image-home").mkdir()
    assert "> /root/ray_bootstrap_config.yaml" in (ROOT / "deployments" / "aml" / "Dockerfile").read_text()
    (home / "ray_bootstrap_config.yaml").write_text("{}\n")
    with (
        running_emulator(folder / "emulator", phase=0.3, image_home=home) as emulator,
        GuardedServer(folder / "prefect", f"admin:{PASSWORD}") as server,
    ):
        secret = emulator.set_secret("prefect-auth-string", f"admin:{PASSWORD}")
        project = _project(here, api_url=server.api_url, api_auth_secret=secret)
        emulator.workspace_config(project / ".azureml")
        bed = Bed(project, server, emulator)
        bed.prefect("work-pool", "create", POOL, "--type", "azure-ml")
        bed.prefect("deploy", "--name", "aml")
        with bed.worker():
            yield AmlStack(folder, bed)


def project_of_jobs(folder: Path) -> Path:
    """Returns a copy of this project as jobs need it."""
    project = project_copy(folder)
    for name in ("plato_core", "tasks"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".amlignore", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    return project


def _project(folder: Path, **job_variables: Any) -> Path:
    """A copy of this project, whose deployment `aml` is a small sweep on two nodes."""
    project = project_of_jobs(folder)
    (project / ".env").write_text(f"SOME_PASSWORD={LEFT_ABOUT}\n")
    content = yaml.safe_load((file := project / "prefect.yaml").read_text())
    [deployment] = [one for one in content["deployments"] if one["name"] == "aml"]
    [step] = deployment["build"]
    [inputs] = step.values()
    inputs.update(SHORT)
    deployment["work_pool"]["job_variables"] |= {
        "instance_count": 2,
        "identity": "managed",
        "poll_interval_s": 0.5,
        "ray_port": free_port(),  # Ray's head listens at all addresses: nodes of another test's would join it
        "ray_head_arguments": NODE,
        "ray_worker_arguments": NODE,
        **job_variables,
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return project


def assert_whole(series: dict[str, list[tuple[int, float]]], iterations: int) -> None:
    """Each series has every step once; those of episodes only the iterations in which one ended."""
    steps = list(range(1, iterations + 1))
    assert "training_iteration" in series
    for name, points in series.items():
        mine = [step for step, _ in points]
        assert mine == steps or (name in EPISODE_METRICS and set(mine) < set(steps) and mine == sorted(set(mine))), name

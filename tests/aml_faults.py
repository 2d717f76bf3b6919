"""Small runs on an emulated Azure ML whose endpoints fail in turn, and what must be true of each at its end.

A run is a job whose flow tracks two trials as the driver of a sweep does, without training: `aml_tracked.py`. Which
endpoints there are is what a run without faults has asked for.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aml_bed import Emulator, running_emulator
from aml_home import Home
from aml_jobs import laptop_env
from aml_tracks import assert_tracked_once
from aml_worker_bed import POOL, Bed, GuardedServer, project
from stack import ROOT
from waiting import wait_until

PASSWORD = "the-password-of-this-server"
PATIENCE_S = 1200.0  # each of 27 endpoints may be silent for 30 s and more, one after the other
# By their fields of `aml_emulator.faults.Fault`.
CLASSES: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "headers": {"Retry-After": "1"}},
    "500": {"status": 500},
    "500 after": {"status": 500, "handled": True},
    "503": {"status": 503},
    "reset": {"reset": True},
    "reset after": {"reset": True, "handled": True},
    "truncated": {"truncate": True},
    "silent": {"silent": True},
    "silent after": {"silent": True, "handled": True},
}
# More often than azure-core asks by itself, which is 4 times: the project's own patience is needed.
LASTING: dict[str, dict[str, Any]] = {
    "429 lasting": CLASSES["429"] | {"times": 5},
    "503 lasting": CLASSES["503"] | {"times": 5},
    "reset lasting": CLASSES["reset"] | {"times": 5},
}
# What the worker asks once, or for a token, which it keeps for an hour; a laptop's command asks anew.
KEPT = frozenset(
    {
        "^GET login.microsoftonline.com/[^/]+/v2.0/.well-known/openid-configuration$",
        "^POST login.microsoftonline.com/[^/]+/oauth2/v2.0/token$",
        "^GET management.azure.com/.*/workspaces/[^/]+$",
    }
)
# Endpoints that each such run asks; `make soak` says so if one is no longer asked.
_WORKSPACE, _RUN = r"/.*/workspaces/[^/]+", r"/.*/workspaces/[^/]+/experiments/[^/]+/runs/[^/]+"
_MLFLOW = rf"eastus.api.azureml.ms/mlflow/v2.0{_WORKSPACE}/api/2.0/mlflow"
OF_A_JOB = frozenset(
    {
        "^GET 127.0.0.1/msi/token$",
        rf"^GET eastus.api.azureml.ms/history/v1.0{_RUN}/artifacts/contentinfo$",
        rf"^POST eastus.api.azureml.ms/history/v1.0{_RUN}/artifacts/batch/metadata$",
        rf"^GET {_MLFLOW}/runs/get$",
        rf"^POST {_MLFLOW}/experiments/search$",
        rf"^POST {_MLFLOW}/runs/create$",
        rf"^POST {_MLFLOW}/runs/log-batch$",
        rf"^POST {_MLFLOW}/runs/set-tag$",
        rf"^POST {_MLFLOW}/runs/update$",
        "^GET emustore.blob.core.windows.net/azureml/ExperimentRun/.*/user_logs/.*$",
        "^PUT emustore.blob.core.windows.net/azureml/ExperimentRun/(?!.*(user_logs|checkpoint_)).*$",
        "^PUT emustore.blob.core.windows.net/azureml/ExperimentRun/.*checkpoint_[^/]+/.*$",
        "^HEAD emustore.blob.core.windows.net/(?!azureml/).*$",
        "^PUT emustore.blob.core.windows.net/(?!azureml/).*$",
        "^GET kv-emu.vault.azure.net/secrets/prefect-auth-string/$",
        rf"^GET management.azure.com{_WORKSPACE}/codes/[^/]+/versions$",
        rf"^POST management.azure.com{_WORKSPACE}/codes/[^/]+/versions/[^/]+/startPendingUpload$",
        rf"^PUT management.azure.com{_WORKSPACE}/codes/[^/]+/versions/[^/]+$",
        rf"^GET management.azure.com{_WORKSPACE}/computes/cpu-cluster$",
        rf"^GET management.azure.com{_WORKSPACE}/datastores/workspaceblobstore$",
        rf"^POST management.azure.com{_WORKSPACE}/datastores/workspaceblobstore/listSecrets$",
        rf"^PUT management.azure.com{_WORKSPACE}/environments/[^/]+/versions/[^/]+$",
        rf"^GET management.azure.com{_WORKSPACE}/jobs/pf-[^/]+$",
        rf"^PUT management.azure.com{_WORKSPACE}/jobs/pf-[^/]+$",
    }
)
# Likewise for a sweep from home, whose job reads no secret.
OF_HOME = frozenset(one.replace("/jobs/pf-", "/jobs/ps-") for one in OF_A_JOB if not re.search("msi|vault", one))
_FETCH = """
import json, sys
from plato_core.fetch import get_top_run
from plato_core.manifest import read_manifest, verify
top = get_top_run(sys.argv[1], "model_checkpoints", rank_metric="metrics.episode_reward_mean")
print(json.dumps({"run": top.run_id, "wrong": verify(top.checkpoint_path, read_manifest(top.checkpoint_path))}))
"""
_WHAT_DIFFERS = (
    (r"/subscriptions/.*?/workspaces/ws-emu", r"/.*/workspaces/[^/]+"),
    (r"/experiments/[^/]+/runs/[^/]+/", r"/experiments/[^/]+/runs/[^/]+/"),
    (r"pf-[0-9a-f-]{36}-\d{3}", r"pf-[^/]+"),
    (r"ps-[\w-]+-\d{3}", r"ps-[^/]+"),
    (r"/ExperimentRun/.*checkpoint_\d+/.*", r"/ExperimentRun/.*checkpoint_[^/]+/.*"),
    (r"/ExperimentRun/.*/user_logs/.*", r"/ExperimentRun/.*/user_logs/.*"),
    (r"/ExperimentRun/(?!\.\*).*", r"/ExperimentRun/(?!.*(user_logs|checkpoint_)).*"),
    (r"/(codes|environments)/[^/]+/versions", r"/\1/[^/]+/versions"),
    (r"/versions/[^/]+", r"/versions/[^/]+"),
    (r"[0-9a-f]{8}-[0-9a-f-]{27}", r"[^/]+"),
    (r"(blob\.core\.windows\.net)/(?!azureml/)[^/]+/.*", r"\1/(?!azureml/).*"),
)


def endpoint(request: dict[str, Any]) -> str:
    """Returns the regular expression of what a request asked for, without what differs from run to run."""
    path = request["path"]
    line = f"{request['host']}{path}"
    for differs, same in _WHAT_DIFFERS:
        line = re.sub(differs, lambda found, same=same: found.expand(same) if r"\1" in same else same, line, count=1)
    return f"^{request['m']} {line}$"


@dataclass
class Faulty:
    """All of it, running.

    Args:
        bed: Server, workspace and worker.
        asked: Of the runs without faults: how often each endpoint was asked, by what the run was of.
    """

    bed: Bed
    asked: dict[str, Counter[str]] = field(default_factory=dict)
    _runs: int = 0

    def __post_init__(self) -> None:
        self.home = Home(self.bed, PATIENCE_S)

    @property
    def emulator(self) -> Emulator:
        return self.bed.emulator

    def learn(self, wanted: str = "") -> None:
        """Runs all scenarios of a name like that without faults, and notes what is asked."""
        for scenario, run in SCENARIOS.items():
            if not re.search(wanted, scenario):
                continue
            if scenario in AFTER_A_JOB and self._runs == 0:
                self.job()
            before = len(self.emulator.requests())
            run(self)
            new = self.emulator.requests()[before:]
            self.asked[scenario] = Counter(endpoint(one) for one in new if one["m"] != "CONNECT")

    def spoil(self, endpoints: dict[str, int], fault: str) -> None:
        """Has each endpoint fail, once or for as long as the fault lasts.

        Args:
            endpoints: How many of its requests pass before.
            fault: One of `CLASSES` or `LASTING`.
        """
        self.emulator.control("clear_faults")
        for match, skip in endpoints.items():
            self.emulator.fault(match, skip=skip, **(CLASSES | LASTING)[fault])

    def unmet(self) -> list[str]:
        """The faults that met no request since the last `spoil`; none is left after it."""
        left = self.emulator.control("faults")
        self.emulator.control("clear_faults")
        return left

    def job(self) -> None:
        """One run by the worker, from its submission to its end; all must be there once."""
        self._runs += 1
        number, bed = self._runs, self.bed
        (bed.folder / "marker.txt").write_text(f"{number}\n")  # code and image are others each time
        (bed.folder / "image" / "Dockerfile").write_text(f"FROM python:3.11\n# {number}\n")
        experiment = f"faults-{number:04d}"
        paths = ":".join(str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests" / "integration"))
        # As a user may set it, so that a tracking server that hangs is given up soon.
        variables = {"PYTHONPATH": paths, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        run_id = bed.start({"experiment_name": experiment, "track": True}, env=variables)
        run = bed.ended(run_id, PATIENCE_S)
        name = f"pf-{run_id}-000"
        said = [entry["message"] for entry in bed.log_of(run_id)]
        assert run["state_name"] == "Completed", (run["state"], said, self.emulator.log(name))
        assert [job for job in self.emulator.jobs() if run_id in job] == [name]
        assert bed.job_ended(name, PATIENCE_S) == "Completed"
        assert self.emulator.job(name)["attempt"] == 1
        wait_until(
            lambda: any(f"Job {name} is Completed" in entry["message"] for entry in bed.log_of(run_id)),
            "the worker sees the end",
            PATIENCE_S,
        )
        said = [entry["message"] for entry in bed.log_of(run_id)]
        assert said.count("printed by the flow") == 1
        assert_tracked_once(self.emulator, experiment, [self.emulator.job(name)["run_uuid"], name])
        stored = {path.name for path in self.emulator.artifacts(name).iterdir()}
        assert "config.yaml" in stored or "config-2.yaml" in stored

    def fetch(self) -> None:
        """The laptop's part: the best checkpoint of the newest run, verified."""
        done = subprocess.run(
            [sys.executable, "-c", _FETCH, f"faults-{self._runs:04d}"],
            cwd=tempfile.mkdtemp(prefix="laptop-", dir=self.bed.folder.parent),  # below the folder of `config.json`
            env=laptop_env(self.emulator) | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["wrong"] == []

    def cancel(self) -> None:
        """A run that is cancelled while its job waits."""
        self.emulator.control("hold")
        try:
            run_id = self.bed.start({"experiment_name": "cancelled"})
            name = f"pf-{run_id}-000"
            wait_until(lambda: self.bed.state_of(run_id) == "Queued", "the job waits", PATIENCE_S)
            self.bed.cancel(run_id)
            assert self.bed.ended(run_id, PATIENCE_S)["state_name"] == "Cancelled"
            assert self.bed.job_ended(name, PATIENCE_S) == "Canceled"
        finally:
            self.emulator.control("release")
        assert [job for job in self.emulator.jobs() if run_id in job] == [name]

    def death(self) -> None:
        """A job that dies: its run is told of what."""
        run_id = self.bed.start(command="echo 'numpy: Cannot allocate memory'; exit 137")
        run = self.bed.ended(run_id, PATIENCE_S)
        assert run["state_name"] == "Crashed"
        assert "out of memory" in run["state"]["message"]
        assert [job for job in self.emulator.jobs() if run_id in job] == [f"pf-{run_id}-000"]


# Those of the laptop come first: the worker is still silent then, and what is asked is theirs.
SCENARIOS: dict[str, Callable[[Faulty], object]] = {
    "home job": lambda faulty: faulty.home.job(),
    "home cancel": lambda faulty: faulty.home.cancel_and_go_on(),
    "home adopted": lambda faulty: faulty.home.adopted(),
    "job": Faulty.job,
    "fetch": Faulty.fetch,
    "cancel": Faulty.cancel,
    "death": Faulty.death,
}
OF_THE_LAPTOP = frozenset({"home job", "home cancel", "home adopted", "fetch"})
# What they find is of a job before: its checkpoint, or its code, which is uploaded once.
AFTER_A_JOB = frozenset({"fetch", "cancel", "death"})


@contextlib.contextmanager
def running_faulty(folder: Path) -> Iterator[Faulty]:
    """A stack that is up, with its worker, and knows what is asked.

    Args:
        folder: An empty folder.
    """
    with (
        running_emulator(folder / "emulator", phase=0.1) as emulator,
        GuardedServer(folder / "prefect", f"admin:{PASSWORD}") as server,
    ):
        secret = emulator.set_secret("prefect-auth-string", f"admin:{PASSWORD}")
        settings = {"api_url": server.api_url, "api_auth_secret": secret, "identity": "managed"}
        bed = Bed(project(folder, emulator, **settings), server, emulator)
        bed.prefect("work-pool", "create", POOL, "--type", "azure-ml")
        bed.prefect("deploy", "--all")
        with bed.worker():
            yield Faulty(bed)

"""An Azure ML workspace of a test's own: the loopback emulator, and what tests ask of it.

The emulator is a process of its own; the SDKs are pointed at it by environment variables alone (`Emulator.env()`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loopback
from stack import ROOT

_READY_S = 240.0


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    folder: Path
    http_port: int
    client_secret: str
    subscription_id: str = "00000000-0000-0000-0000-000000000001"
    resource_group: str = "rg-emu"
    workspace: str = "ws-emu"
    tenant_id: str = "11111111-1111-1111-1111-111111111111"

    @property
    def ca_file(self) -> Path:
        return self.folder / "certs" / "ca.pem"

    @property
    def tracking_uri(self) -> str:
        return (
            f"azureml://eastus.api.azureml.ms/mlflow/v1.0/subscriptions/{self.subscription_id}/resourceGroups/"
            f"{self.resource_group}/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace}"
        )

    def env(self) -> dict[str, str]:
        """The variables that point unpatched SDKs at it."""
        proxy = f"http://127.0.0.1:{self.http_port}"
        here = "127.0.0.1,localhost"
        return {
            "HTTPS_PROXY": proxy,
            "https_proxy": proxy,
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "NO_PROXY": here,
            "no_proxy": here,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "SSL_CERT_FILE": str(self.ca_file),
            "AZURE_TENANT_ID": self.tenant_id,
            "AZURE_CLIENT_ID": "33333333-3333-3333-3333-333333333333",
            "AZURE_CLIENT_SECRET": self.client_secret,
            "DO_NOT_TRACK": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

    def workspace_config(self, folder: Path) -> Path:
        """Writes a `config.json` as the portal's "Download config.json" gives it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.json"
        path.write_text(
            json.dumps(
                {
                    "subscription_id": self.subscription_id,
                    "resource_group": self.resource_group,
                    "workspace_name": self.workspace,
                }
            )
        )
        return path

    def requests(self) -> list[dict[str, Any]]:
        """Every request so far: `m` method, `host`, `path`, `q` query, `status`, `body` where it was small JSON."""
        lines = (self.folder / "requests.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def refused(self) -> list[str]:
        """The hosts that something asked for and that are not Azure's."""
        return [one["host"] for one in self.requests() if one.get("refused")]

    def fault(self, match: str, status: int = 503, times: int = 1, **more: Any) -> None:
        """Spoils the next requests whose "METHOD host/path" matches.

        Args:
            match: A regular expression.
            status: Of the answer.
            times: How many of them.
            more: Further fields of `aml_emulator.faults.Fault`: `headers`, `delay_s`, `reset`,
                `truncate`, `handled`, `skip`.
        """
        self.control("fault", match=match, status=status, times=times, **more)

    def job(self, name: str) -> dict[str, Any]:
        """What it knows of a job: `status`, `history` of it, `error`, `attempt`, `nodes`, `run_uuid` and more."""
        return self.control("state")["jobs"][name]

    def jobs(self) -> list[str]:
        return list(self.control("state")["jobs"])

    def set_secret(self, name: str, value: str) -> str:
        """Puts a secret into the key vault and returns its URL."""
        return self.control("secret", name=name, value=value)["url"]

    def secrets(self) -> list[str]:
        """Every credential handed out so far; none may turn up in a log, a tag, a parameter or an artifact."""
        return self.control("secrets")

    def artifacts(self, run_id: str) -> Path:
        """Where the files of a run are kept."""
        return self.folder / "blobs" / "azureml" / f"ExperimentRun/dcid.{run_id}"

    def log(self, job: str) -> str:
        """What a job's first node has said so far."""
        path = self.artifacts(job) / "user_logs" / "std_log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def datastore(self, path: str = "") -> Path:
        """A path of the workspace's default datastore, `azureml://datastores/workspaceblobstore/paths/...`."""
        return self.folder / "blobs" / "azureml-blobstore-emu" / path

    def control(self, action: str, **arguments: Any) -> Any:
        """Does something to the cloud: `hold`, `release`, `preempt`, `kill_node`, ...; see the emulator's README.md."""
        response = loopback.request(
            "POST", f"http://127.0.0.1:{self.http_port}/_emu/{action}", json=arguments, timeout=60.0
        )
        assert response.is_success, response.text
        return response.json()


@contextlib.contextmanager
def running_emulator(folder: Path, **options: Any) -> Iterator[Emulator]:
    """An emulator that answers, and nothing left of it afterwards.

    Args:
        folder: An empty folder for its data.
        options: Its command line (`python -m aml_emulator --help`): `phase=0.1` is `--phase 0.1`.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "aml_emulator", "--folder", str(folder), "--die-with-parent"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    client_secret = secrets.token_urlsafe(24)
    environment = os.environ | {"AML_EMULATOR_CLIENT_SECRET": client_secret}
    said = folder / "emulator.log"
    with said.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT / "tests", env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _READY_S
        while not (ready := folder / "ready.json").exists():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        ports = json.loads(ready.read_text())
        yield Emulator(folder, ports["http"], client_secret)
    finally:
        process.terminate()
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def inherited_env() -> dict[str, str]:
    """This process's variables without what would point elsewhere; add `Emulator.env()` to it."""
    foreign = ("PREFECT_", "PLATO_", "MLFLOW_", "RAY_", "PYTEST_", "AZURE")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.upper().endswith("_PROXY")
    }

"""The real `mlflow server` that stands behind the workspace's MLflow endpoints."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from aml_emulator.cloud import artifact_root

_STARTS_WITHIN_S = 240.0
_OFF = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


class MlflowServer:
    """A child process on a port of 127.0.0.1.

    Args:
        root: The emulator's folder.
        port: To listen on.
        marker: Variables by which its processes are found and ended.
    """

    def __init__(self, root: Path, port: int, marker: dict[str, str]) -> None:
        foreign = ("MLFLOW_", "PREFECT_", "AZURE")
        kept = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(foreign) and not name.upper().endswith("_PROXY")
        }
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db"]
        command += ["--default-artifact-root", str(root / "mlartifacts")]
        self._port, self._log = port, root / "mlflow.log"
        self._lock = threading.Lock()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=kept | _OFF | marker,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Waits until it answers.

        Raises:
            RuntimeError: If it ended, or never answered.
        """
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the MLflow server ended; see {self._log}")
            try:
                if self.forward("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"the MLflow server does not answer; see {self._log}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forward(self, method: str, path: str, body: bytes | None = None, query: str = "") -> tuple[int, bytes, str]:
        """Sends a request on; returns status, body and content type."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120.0)
        try:
            connection.request(
                method, path + (f"?{query}" if query else ""), body, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers.get("Content-Type") or "application/json"
        finally:
            connection.close()

    def call(self, endpoint: str, value: dict[str, Any]) -> dict[str, Any]:
        """Posts to one of MLflow's endpoints, such as `runs/update`."""
        status, body, _ = self.forward("POST", f"/api/2.0/mlflow/{endpoint}", json.dumps(value).encode())
        if status != 200:
            raise RuntimeError(f"MLflow answered {status} to {endpoint}: {body.decode('utf8', 'replace')}")
        return json.loads(body or b"{}")

    def experiment(self, name: str) -> str:
        """Returns the id of an experiment, made if there is none."""
        with self._lock:
            query = urllib.parse.urlencode({"experiment_name": name})
            status, body, _ = self.forward("GET", "/api/2.0/mlflow/experiments/get-by-name", query=query)
            if status == 200:
                return json.loads(body)["experiment"]["experiment_id"]
            made = self.call("experiments/create", {"name": name, "artifact_location": artifact_root(name)})
            return made["experiment_id"]

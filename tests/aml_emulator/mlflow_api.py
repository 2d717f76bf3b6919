"""The workspace's MLflow endpoints: a real server behind, the job's name in place of its own run's id."""

from __future__ import annotations

import json
import urllib.parse
import uuid
from typing import Any

from aml_emulator.cloud import artifact_root
from aml_emulator.messages import Answer, Request, ServiceError, as_json
from aml_emulator.mlflow_limits import MlflowLimits
from aml_emulator.mlflow_server import MlflowServer
from aml_emulator.state import State
from aml_emulator.tokens import Tokens

_ASYNC, _BATCH = "/preview/mlflow/runs/log-batch-async", "/mlflow/runs/log-batch"


class MlflowApi:
    """Answers for `/mlflow/v?.0{workspace}/...`."""

    def __init__(self, state: State, tokens: Tokens, server: MlflowServer, limits: MlflowLimits) -> None:
        self._state, self._tokens, self._server, self.limits = state, tokens, server, limits

    def answer(self, request: Request, path: str) -> Answer:
        try:
            self._tokens.check(request)
        except ServiceError as refused:
            return as_json({"error_code": "UNAUTHENTICATED", "message": str(refused)}, 401)
        if path.endswith("/get-run-data-status"):
            return as_json({"is_complete": True, "start_time": 0})
        asynchronous = path.endswith(_ASYNC)
        path = path.replace(_ASYNC, _BATCH)
        body = request.json
        if refusal := self.limits.refusal(path, body):
            return refusal
        if path.endswith("experiments/create"):
            body.setdefault("artifact_location", artifact_root(body["name"]))
        answer = self._forward(request, path, body)
        if answer.status == 200 and path.endswith("runs/create"):
            made = json.loads(answer.body)["run"]["info"]["run_id"]
            self.limits.created(made, body.get("tags") or [])
        if answer.status == 200 and asynchronous:
            return as_json({"batch_tracking_id": str(uuid.uuid4()) if body.get("metrics") else ""})
        return answer

    def _forward(self, request: Request, path: str, body: dict[str, Any]) -> Answer:
        text = json.dumps(body) if body else request.body.decode("utf8", "replace")
        query = request.raw_query
        with self._state.changed:
            names = {job.name: job.run_uuid for job in self._state.jobs.values()}
        for name in sorted(names, key=len, reverse=True):  # a name may begin with another
            text, query = text.replace(name, names[name]), query.replace(urllib.parse.quote(name), names[name])
        status, content, kind = self._server.forward(request.method, path, text.encode() or None, query)
        shown = content.decode("utf8", "replace")
        for name, run_uuid in names.items():
            shown = shown.replace(run_uuid, name)
        if '"artifact_uri"' in shown:
            shown = _with_azure_locations(shown)
        return Answer(status, shown.encode(), {"Content-Type": kind})


def _with_azure_locations(text: str) -> str:
    """Rewrites the artifact locations of runs in the server's own default experiment."""
    answer = json.loads(text)
    runs = [run["info"] for run in answer.get("runs") or ([answer["run"]] if "run" in answer else [])]
    for info in runs + ([answer["run_info"]] if "run_info" in answer else []):
        if not info.get("artifact_uri", "").startswith("azureml://"):
            info["artifact_uri"] = f"{artifact_root('Default')}/{info['run_id']}/artifacts"
    return json.dumps(answer)

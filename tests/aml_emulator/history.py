"""Run history: a job's details and logs, its token's renewal, its tags; artifacts lie beside it."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from aml_emulator.artifacts import Artifacts
from aml_emulator.cloud import ARTIFACTS, BLOB, LOCATION, WORKSPACE, artifact_prefix
from aml_emulator.jobs_api import check_tags
from aml_emulator.messages import Answer, Request, as_json, no_route, not_found
from aml_emulator.mlflow_server import MlflowServer
from aml_emulator.state import TERMINAL, Job, State
from aml_emulator.tokens import Tokens

RUN_AUDIENCE = "https://ml.azure.com"


class History:
    """Answers for `/history/v1.0{workspace}/...`."""

    def __init__(self, state: State, tokens: Tokens, artifacts: Artifacts, mlflow: MlflowServer) -> None:
        self._state, self._tokens, self._artifacts, self._mlflow = state, tokens, artifacts, mlflow

    def answer(self, request: Request, rest: str) -> Answer:
        if rest == "/rundata":
            return as_json(_run_data(self._job(request.json["runId"])))
        if found := re.fullmatch(r"/(?:experiments/[^/]+/)?runs/([^/]+)/details", rest):
            return as_json(self._details(self._job(found[1])))
        if re.fullmatch(r"/(?:experiments|experimentids)/[^/]+/runs/[^/]+/token", rest):
            token, expires = self._tokens.issue(RUN_AUDIENCE)
            shown = dt.datetime.fromtimestamp(expires, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            return as_json({"token": token, "expiryTimeUtc": shown})
        if found := re.fullmatch(r"/experiments/[^/]+/runs/([^/]+)/artifacts(/.*)?", rest):
            return self._artifacts.answer(request, found[1], found[2] or "")
        if request.method == "PATCH" and (found := re.fullmatch(r"/experiments/[^/]+/runs/([^/]+)", rest)):
            return self._patch(self._job(found[1]), request.json)
        raise no_route(request)

    def _job(self, name: str) -> Job:
        if name not in self._state.jobs:
            raise not_found(f"Run {name} was not found")
        return self._state.jobs[name]

    def _details(self, job: Job) -> dict[str, Any]:
        prefix = artifact_prefix(job.name)
        root = self._state.container(ARTIFACTS) / prefix
        names = sorted(str(file.relative_to(root)) for file in root.glob("user_logs/*.txt"))
        logs = {name: f"{BLOB}/{ARTIFACTS}/{prefix}/{name}?{self._tokens.sas('r')}" for name in names}
        return {
            "runId": job.name,
            "target": job.compute,
            "status": job.status,
            "startTimeUtc": job.started,
            "endTimeUtc": job.ended,
            "warnings": [],
            "properties": {},
            "logFiles": logs,
            "error": {"error": job.error} if job.error else None,
        }

    def _patch(self, job: Job, wanted: dict[str, Any]) -> Answer:
        tags = {**(job.properties.get("tags") or {}), **(wanted.get("tags") or {})}
        check_tags(tags)
        job.properties["tags"] = tags
        job.properties["properties"] = {**(job.properties.get("properties") or {}), **(wanted.get("properties") or {})}
        for key, value in (wanted.get("tags") or {}).items():
            self._mlflow.call("runs/set-tag", {"run_id": job.run_uuid, "key": key, "value": str(value)})
        return as_json({"runId": job.name, "status": job.status})


def _run_data(job: Job) -> dict[str, Any]:
    outputs = {}
    if job.status in TERMINAL:
        where = f"azureml://locations/{LOCATION}/workspaces/{WORKSPACE}/data"
        for name in job.properties.get("outputs") or {}:
            asset = f"{where}/azureml_{job.name}_output_data_{name}/versions/1"
            outputs[name] = {"assetId": asset, "type": "uri_folder"}
    run = {
        "runId": job.name,
        "status": job.status,
        "experimentId": job.experiment_id,
        "outputs": outputs,
        "error": {"error": job.error} if job.error else None,
        "tags": job.properties.get("tags") or {},
        "properties": job.properties.get("properties") or {},
    }
    return {"runMetadata": run, "runDefinition": None, "jobSpecification": None}

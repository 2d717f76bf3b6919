"""Artifacts of runs: registered once and never again under the same path, kept in the artifact container."""

from __future__ import annotations

import re
import threading
import urllib.parse
from pathlib import Path
from typing import Any

from aml_emulator.cloud import ARTIFACTS, BLOB, RESOURCE_GROUP, SUBSCRIPTION, WORKSPACE, artifact_prefix
from aml_emulator.messages import Answer, Request, as_json, no_route, not_found
from aml_emulator.state import State, now_text
from aml_emulator.tokens import Tokens

PATH_LENGTH = 5000  # documented


class Artifacts:
    """Answers for `.../runs/{run}/artifacts...`."""

    def __init__(self, state: State, tokens: Tokens) -> None:
        self._state, self._tokens = state, tokens
        self._registered: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def root(self, run: str) -> Path:
        return self._state.container(ARTIFACTS) / artifact_prefix(run)

    def paths(self, run: str) -> list[str]:
        root = self.root(run)
        return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())

    def answer(self, request: Request, run: str, rest: str) -> Answer:
        wanted = request.query.get("path", "")
        match request.method, rest:
            case "GET", "":
                shown = [self._shown(run, path) for path in self.paths(run)]
                return as_json({"value": shown, "continuationToken": None, "nextLink": None})
            case "GET", "/path":
                return as_json({"value": [self._shown(run, one) for one in self.paths(run) if one.startswith(wanted)]})
            case "GET", "/contentinfo":
                if not (self.root(run) / wanted).is_file():
                    raise not_found(f"Artifact {artifact_prefix(run)}/{wanted} was not found.")
                return as_json(self._content(run, wanted, "r"))
            case "POST", "/batch/metadata":
                return self._register(run, [entry["path"] for entry in request.json["paths"]])
        raise no_route(request)

    def _register(self, run: str, paths: list[str]) -> Answer:
        shown: dict[str, Any] = {}
        content: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        for path in paths:
            with self._lock:
                taken = (run, path) in self._registered or (self.root(run) / path).is_file()
                if not taken and len(path) <= PATH_LENGTH:
                    self._registered.add((run, path))
            if taken:
                conflict = f"Resource Conflict: ArtifactId {artifact_prefix(run)}/{path} already exists."
                errors[path] = {"error": {"code": "UserError", "message": conflict}}
            elif len(path) > PATH_LENGTH:
                message = f"A field of the entity is over the size limit. FieldName=Path, Limit={PATH_LENGTH}."
                errors[path] = {"error": {"code": "UserError", "message": message}}
            else:
                shown[path], content[path] = self._shown(run, path), self._content(run, path, "rcw")
        return as_json({"artifacts": shown, "artifactContentInformation": content, "errors": errors})

    def _shown(self, run: str, path: str) -> dict[str, Any]:
        more = {
            "artifactId": f"{artifact_prefix(run)}/{path}",
            "etag": None,
            "createdTime": now_text(),
            "dataPath": None,
        }
        return {"origin": "ExperimentRun", "container": f"dcid.{run}", "path": path, "tags": None, **more}

    def _content(self, run: str, path: str, permissions: str) -> dict[str, Any]:
        where = f"{BLOB}/{ARTIFACTS}/{artifact_prefix(run)}/{urllib.parse.quote(path)}"
        more = {"contentUri": f"{where}?{self._tokens.sas(permissions)}"}
        return {"origin": "ExperimentRun", "container": f"dcid.{run}", "path": path, "tags": None, **more}


def resolved_uris(request: Request, state: State) -> Answer:
    """Where the data assets of jobs' outputs lie, as `jobs.download` asks."""
    store = f"azureml://subscriptions/{SUBSCRIPTION}/resourcegroups/{RESOURCE_GROUP}/workspaces/{WORKSPACE}/datastores"
    values = {}
    for asset in request.json["values"]:
        found = re.search(r"/data/azureml_(.+)_output_data_(.+)/versions/", asset)
        if not found or found[1] not in state.jobs:
            raise not_found(f"Asset {asset} was not found.")
        output = state.jobs[found[1]].properties["outputs"][found[2]]
        explicit = re.search(r"/paths/(.*)$", output.get("uri") or "")
        path = explicit[1].strip("/") if explicit else f"azureml/{found[1]}/{found[2]}"
        values[asset] = {"uri": f"{store}/workspaceblobstore/paths/{path}/", "type": "UriFolder"}
    return as_json({"values": values})

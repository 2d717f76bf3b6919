"""Code folders and environments, as the SDK registers them before a job."""

from __future__ import annotations

import re
import urllib.parse
import uuid
from typing import Any

from aml_emulator.cloud import BLOB, DEFAULT_STORE, PROVIDER, WORKSPACE_ID
from aml_emulator.messages import Answer, Request, ServiceError, as_json, no_route, not_found
from aml_emulator.state import Code, State, now_text
from aml_emulator.tokens import Tokens

BUILD_FILES, BUILD_BYTES = 100, 2**20  # documented limits of a Docker build context
_AUTHOR = {"createdBy": "emu", "createdByType": "User"}


def _asset(kind: str, name: str, version: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{WORKSPACE_ID}/{kind}/{name}/versions/{version}",
        "name": version,
        "type": f"{PROVIDER}/workspaces/{kind}/versions",
        "properties": properties,
        "systemData": {"createdAt": now_text(), **_AUTHOR},
    }


class Codes:
    """`codes/{name}/versions[/{version}[/startPendingUpload]]`."""

    def __init__(self, state: State, tokens: Tokens) -> None:
        self._state, self._tokens = state, tokens

    def answer(self, request: Request, path: list[str]) -> Answer:
        name, codes = path[0], self._state.codes
        match request.method, path[1:]:
            case "GET", ["versions"]:
                wanted = request.query.get("hash")
                hits = [key for key, code in codes.items() if wanted and code.hash == wanted]
                return as_json({"value": [self._shown(*key) for key in hits[:1]], "nextLink": None})
            case "POST", ["versions", _, step] if step.lower() == "startpendingupload":
                return self._pending_upload()
            case "PUT", ["versions", version]:
                properties = request.json["properties"]
                hash_ = (properties.get("properties") or {}).get("hash_sha256")
                with self._state.changed:
                    codes[name, version] = Code(properties, self._folder(properties["codeUri"]), hash_)
                return as_json(self._shown(name, version), 201)
            case "GET", ["versions", version] if (name, version) in codes:
                return as_json(self._shown(name, version))
            case "GET", ["versions", version]:
                raise not_found(f"Code {name}:{version} was not found.")
        raise no_route(request)

    def _shown(self, name: str, version: str) -> dict[str, Any]:
        return _asset("codes", name, version, self._state.codes[name, version].properties)

    def _pending_upload(self) -> Answer:
        container = str(uuid.uuid4())  # a fresh one, as the service does for TemporaryBlobReference
        self._state.container(container).mkdir(parents=True)
        uri = f"{BLOB}/{container}"
        credential = {"credentialType": "SAS", "sasUri": f"{uri}?{self._tokens.sas('racwl')}"}
        reference = {"blobUri": uri, "storageAccountArmId": "emu", "credential": credential}
        return as_json(
            {
                "pendingUploadType": "TemporaryBlobReference",
                "pendingUploadId": None,
                "blobReferenceForConsumption": reference,
            }
        )

    def _folder(self, uri: str) -> Any:
        return self._state.blobs / urllib.parse.unquote(urllib.parse.urlsplit(uri).path.strip("/"))


class Environments:
    """`environments/{name}[/versions[/{version}]]`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def answer(self, request: Request, path: list[str]) -> Answer:
        name, environments = path[0], self._state.environments
        versions = [version for known, version in environments if known == name]
        match request.method, path[1:]:
            case "PUT", ["versions", version]:
                properties = request.json["properties"]
                self._check_build(properties.get("build"))
                with self._state.changed:
                    environments[name, version] = properties | {"environmentType": "UserCreated"}
                return as_json(_asset("environments", name, version, environments[name, version]), 201)
            case "GET", ["versions", version] if (name, version) in environments:
                return as_json(_asset("environments", name, version, environments[name, version]))
            case "GET", ["versions"]:  # with $orderBy and $top=1 for `@latest`
                newest = [_asset("environments", name, one, environments[name, one]) for one in reversed(versions)]
                return as_json({"value": newest})
            case "GET", [] if versions:
                properties = {"latestVersion": versions[-1], "nextVersion": "0", "isArchived": False}
                return as_json({"id": f"{WORKSPACE_ID}/environments/{name}", "name": name, "properties": properties})
            case "GET", _:
                raise not_found(f"Environment {':'.join(path[::2])} was not found.")
        raise no_route(request)

    def _check_build(self, build: dict[str, Any] | None) -> None:
        if not build:
            return
        uri = build["contextUri"]
        relative = re.sub(rf"^https://[^/]+/{DEFAULT_STORE}/|^.*/datastores/workspaceblobstore/paths/", "", uri)
        folder = self._state.container(DEFAULT_STORE) / relative.strip("/")
        files = [file for file in folder.rglob("*") if file.is_file()]
        dockerfile = build.get("dockerfilePath") or "Dockerfile"
        if folder / dockerfile not in files:
            raise ServiceError(400, "UserError", f"The build context {uri} holds no {dockerfile}.")
        if len(files) > BUILD_FILES or sum(file.stat().st_size for file in files) > BUILD_BYTES:
            message = f"The build context is over the limit of {BUILD_FILES} files or {BUILD_BYTES} bytes."
            raise ServiceError(400, "UserError", message)

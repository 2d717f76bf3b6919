"""Which service a request is for, by its host and its path."""

from __future__ import annotations

import re

from aml_emulator.aad import directory
from aml_emulator.arm import Arm
from aml_emulator.artifacts import resolved_uris
from aml_emulator.blob import BlobStore
from aml_emulator.capacity import capacity, is_capacity
from aml_emulator.cloud import AAD_HOST, API, ARM_HOST, PROVIDER, PUBLISHED_HOST
from aml_emulator.history import History
from aml_emulator.messages import Answer, Request, as_json, no_route
from aml_emulator.mlflow_api import MlflowApi
from aml_emulator.published import published
from aml_emulator.state import State
from aml_emulator.tokens import Tokens
from aml_emulator.vault import vault

_SERVICES = (
    "api history catalog experimentation gallery hyperdrive jobs modelmanagement notebooks pipelines scheduler studio"
)
_WORKSPACE = rf"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/{PROVIDER}/workspaces/([^/]+)(/.*)?"


class Router:
    """Answers every request of the TLS face."""

    def __init__(
        self, state: State, tokens: Tokens, arm: Arm, history: History, mlflow: MlflowApi, blobs: BlobStore
    ) -> None:
        self._state, self._tokens = state, tokens
        self._arm, self._history, self._mlflow, self._blobs = arm, history, mlflow, blobs

    def answer(self, request: Request) -> Answer:
        """Answers, or raises `ServiceError`."""
        if request.host.endswith((".blob.core.windows.net", ".dfs.core.windows.net")):
            return self._blobs.answer(request)
        if request.host == PUBLISHED_HOST:
            return published(request, self._state.published_port)
        if request.host == AAD_HOST:
            return directory(request, self._tokens)
        if request.host.endswith(".vault.azure.net"):
            return vault(request, self._state, self._tokens)
        if request.host == ARM_HOST:
            if found := re.fullmatch(_WORKSPACE, request.path, re.IGNORECASE):
                self._tokens.check(request, "management.")
                return self._arm.answer(request, found[1], found[2] or "")
            if is_capacity(request):
                self._tokens.check(request, "management.")
                return capacity(request, self._state)
            raise no_route(request)
        return self._regional(request)

    def _regional(self, request: Request) -> Answer:
        """The region's own API, `<region>.api.azureml.ms`."""
        if request.path == "/discovery":
            return as_json(dict.fromkeys(_SERVICES.split(), API))
        if found := re.fullmatch(rf"/mlflow/v[12]\.0{_WORKSPACE}", request.path, re.IGNORECASE):
            return self._mlflow.answer(request, found[2] or "")
        if found := re.fullmatch(rf"/history/v1\.0(?:/private)?{_WORKSPACE}", request.path, re.IGNORECASE):
            self._tokens.check(request)
            return self._history.answer(request, found[2] or "")
        if request.path.startswith("/data/v1.0/") and request.path.endswith("/dataversion/batchGetResolvedUris"):
            self._tokens.check(request)
            return resolved_uris(request, self._state)
        raise no_route(request)

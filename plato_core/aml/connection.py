"""How an Azure ML workspace is asked, and what its refusals become.

azure-core tries again by itself what a busy service refuses (429, 5xx) and what a broken connection ends, so an error
from here has lasted for some seconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from plato_core.aml.clouds import current_cloud, tracking_uri_of
from plato_core.aml.credentials import TIMEOUTS, RenewableCredential, signed_in
from plato_core.aml.refusal import translated
from plato_core.aml.workspace import Workspace

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core import PipelineClient

T = TypeVar("T")
# A token that was refused may be kept by so many of the SDK's clients that one question goes through, each by itself.
_STALE_TOKENS = 5


class Connection:
    """A workspace that can be asked, from any thread.

    Args:
        workspace: Which.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()

    def history(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any] | None:
        """Ask the workspace's run history, and return its answer; None for what it does not know.

        Raises:
            AmlError: It cannot be asked.
        """
        from azure.core.exceptions import ClientAuthenticationError
        from azure.core.rest import HttpRequest

        request = HttpRequest("GET", f"{self._history_url}{path}", params=query or {})

        def ask() -> dict[str, Any] | None:
            response = self._rest.send_request(request)
            if response.status_code == 401:
                raise ClientAuthenticationError(response=response)
            if response.status_code == 404:
                return None
            response.raise_for_status()
            return response.json()

        return self._call(ask)

    def read(self, url: str, offset: int, most: int) -> bytes | None:
        """Return a part of a blob, by an address that carries its own right to be read.

        None means that the blob has no such byte, being shorter; an empty part that there is no blob yet.

        Args:
            url: Of the blob, with its signature.
            offset: The first byte.
            most: So many bytes at most.

        Raises:
            AmlError: It cannot be read.
        """
        from azure.core.rest import HttpRequest

        headers = {"Range": f"bytes={offset}-{offset + most - 1}", "x-ms-version": "2021-08-06"}
        request = HttpRequest("GET", url, headers=headers)
        response = self._call(lambda: self._plain.send_request(request))
        if response.status_code == 416:
            return None
        if response.status_code == 404:
            return b""
        self._call(response.raise_for_status)
        content = response.read()
        return content if response.status_code == 206 else content[offset : offset + most] or None

    def size(self, url: str) -> int:
        """Return how long a blob is, 0 if there is none; see `read`."""
        from azure.core.rest import HttpRequest

        request = HttpRequest("HEAD", url, headers={"x-ms-version": "2021-08-06"})
        response = self._call(lambda: self._plain.send_request(request))
        if response.status_code == 404:
            return 0
        self._call(response.raise_for_status)
        return int(response.headers.get("Content-Length") or 0)

    @cached_property
    def _credential(self) -> RenewableCredential:
        return signed_in()

    @cached_property
    def _client(self) -> MLClient:
        # Without a progress bar the SDK looks at no upload of a file that failed, and waits for it for ever
        # (azure-ai-ml 1.35, `upload_directory`). So it has one, that shows nothing.
        os.environ.setdefault("TQDM_DISABLE", "1")
        from plato_core.aml.transport import make_ml_client

        return make_ml_client(self._credential, self.workspace, show_progress=True)

    @property
    def _ml(self) -> MLClient:
        with self._lock:  # threads that come together make one client
            return self._client

    @cached_property
    def _history_url(self) -> str:
        region = urlsplit(tracking_uri_of(self.workspace)).netloc
        return f"https://{region}/history/v1.0{self.workspace.resource_id}"

    @cached_property
    def _rest(self) -> PipelineClient:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy

        from plato_core.aml.transport import PromptTransport

        cloud = current_cloud()
        policies = [RetryPolicy(), BearerTokenCredentialPolicy(self._credential, cloud.scope)]
        transport = PromptTransport(**TIMEOUTS)
        return PipelineClient(f"https://{cloud.management}", policies=policies, transport=transport)

    @cached_property
    def _plain(self) -> PipelineClient:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import RetryPolicy

        from plato_core.aml.transport import PromptTransport

        transport = PromptTransport(**TIMEOUTS)
        return PipelineClient("https://blob.core.windows.net", policies=[RetryPolicy()], transport=transport)

    def _call(self, ask: Callable[[], T], keep: tuple[type[Exception], ...] = ()) -> T:
        """Return what Azure answers; of its errors those to keep as they are, others as one of ours."""
        from azure.ai.ml.exceptions import MlException
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            for number in range(_STALE_TOKENS):
                try:
                    return ask()
                except ClientAuthenticationError as error:
                    if error.status_code != 401:
                        raise
                    if number == 0:
                        self._credential.renew()  # a token that was taken back before its end, as of a rotated secret
            return ask()
        except keep:
            raise
        except (AzureError, MlException, OSError) as error:
            raise translated(error) from None

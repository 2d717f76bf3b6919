"""Files into and out of a store that an MLflow server passes on.

MLflow's client works out anew for each file whether Databricks is installed and which proxies, keys and certificates
there are, which takes a millisecond of CPU. It is the same for all files of a checkpoint: here each is asked for as
one request of that client's was.
"""

import posixpath
import urllib.parse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
    from requests import Response

PARALLEL = 8
"""Files on their way to a remote store at one time."""
DOWNLOADS = 32
"""Files on their way from an MLflow server at one time. One that has several workers, as by default, does not set
TCP_NODELAY: the second packet of its answer waits 40 ms until the first is acknowledged."""
_ARTIFACTS = "/mlflow-artifacts/artifacts"
_AT_ONCE = 2**20


class ServerStore:
    """The artifacts of a run behind an MLflow server; see `of`.

    Args:
        repository: MLflow's own way to them.
    """

    def __init__(self, repository: "MlflowArtifactsRepository") -> None:
        import requests
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        self._repository = repository
        self._root = repository.artifact_uri
        server, _, inside = self._root.partition(_ARTIFACTS)
        credentials = get_default_host_creds(server)
        pattern = http_request(credentials, _ARTIFACTS, "GET", params={"path": inside.lstrip("/")})
        assert isinstance(pattern, requests.Response)
        self._pattern = pattern.request
        self._session = requests.Session()
        # With its retries, and as many open connections as there are files at one time.
        adapter = type(pattern.connection)(pool_maxsize=DOWNLOADS, max_retries=pattern.connection.max_retries)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._settings = self._session.merge_environment_settings(
            self._root, {}, True, credentials.verify, credentials.client_cert_path
        )
        self._settings["timeout"] = MLFLOW_HTTP_REQUEST_TIMEOUT.get()

    @classmethod
    def of(cls, repository: "ArtifactRepository") -> Self | None:
        """Return a way to move files to a store and back; None if it is not behind an MLflow server.

        None also where the server has files go to a bucket directly, or requests are signed one by one: MLflow's client
        knows how.
        """
        from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

        if type(repository) is not MlflowArtifactsRepository:
            return None
        credentials = repository._host_creds
        signed = credentials.aws_sigv4 or credentials.auth or credentials.use_databricks_sdk
        if signed or repository._is_multipart_upload_enabled() or repository._is_multipart_download_enabled():
            return None
        return cls(repository)

    def put(self, source: Path, path: str) -> None:
        """Store a file.

        Args:
            source: The file.
            path: Its artifact path.

        Raises:
            FileNotFoundError: There is no such file.
            requests.RequestException: The server refused it or did not answer.
        """
        with source.open("rb") as file:
            self._answer("PUT", path, file).close()

    def get(self, path: str, target: Path) -> None:
        """Fetch a file that is there, see `among`, into a folder that is.

        Raises:
            requests.RequestException: The server refused it or did not answer in full.
        """
        with self._answer("GET", path) as response, target.open("wb") as file:
            for data in response.iter_content(_AT_ONCE):
                file.write(data)

    def among(self, folder: str, paths: Iterable[str]) -> list[str]:
        """Return those of some paths below a folder that are there; it takes a request for each folder of them.

        To be asked for a file that it lacks, the server answers as if it were broken.
        """
        wanted = list(paths)
        folders = {posixpath.join(folder, posixpath.dirname(path)).rstrip("/") for path in wanted}
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="plato-listing") as pool:
            found = {info.path for infos in pool.map(self._repository.list_artifacts, folders) for info in infos}
        return [path for path in wanted if posixpath.join(folder, path) in found]

    def _answer(self, method: str, path: str, body: BinaryIO | None = None) -> "Response":
        from mlflow.utils.request_utils import augmented_raise_for_status

        request = self._pattern.copy()
        request.method = method
        request.prepare_url(f"{self._root}/{urllib.parse.quote(path)}", {})
        request.prepare_body(body, None)
        response = self._session.send(request, **self._settings)
        augmented_raise_for_status(response)
        return response

"""What Azure's errors are to us: final, or worth another try."""

from typing import Any

from azure.ai.ml.exceptions import AssetException, ErrorTarget
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from requests.exceptions import ProxyError

from plato_core.aml.refusal import translated
from plato_core.errors import AmlUnavailable


def wrapped(cause: Exception) -> Exception:
    """As azure-ai-ml raises what befalls it while it uploads the code."""
    try:
        message = f"Error with code: {cause}"
        kind: Any = ErrorTarget.ASSET
        raise AssetException(message=message, target=kind, no_personal_data_message="") from cause
    except AssetException as error:
        return error


def test_a_connection_that_broke_while_code_was_uploaded_is_tried_again() -> None:
    for cause in (ServiceRequestError("Read timed out"), ProxyError("no route"), TimeoutError("timed out")):
        assert isinstance(translated(wrapped(cause)), AmlUnavailable), cause


def test_code_that_cannot_be_uploaded_is_final() -> None:
    refused = HttpResponseError("no such container")
    refused.status_code = 404
    for cause in (refused, ValueError("no such folder")):
        error = translated(wrapped(cause))
        assert not isinstance(error, AmlUnavailable), cause
        assert str(cause) in str(error)

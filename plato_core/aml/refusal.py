"""Azure's errors as this project's: final ones, and those of a service that may answer in a while."""

from __future__ import annotations

from plato_core.aml.clouds import BUSY, UNREACHED
from plato_core.aml.credentials import sign_in_error
from plato_core.errors import AmlError, AmlUnavailable
from plato_core.report.text import cut, plain

_LONGEST = 500


def translated(error: Exception) -> AmlError:
    """Return what to raise in an error's place: whether to come again is told by its type."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
    from azure.core.exceptions import ServiceRequestError as NotSent
    from azure.core.exceptions import ServiceResponseError as NotAnswered

    if isinstance(error, AmlError):
        return error
    if isinstance(error, ClientAuthenticationError) and error.status_code is None:
        return sign_in_error(str(error))
    text, status = _message(error), getattr(error, "status_code", None)
    if status in (401, 403):
        return AmlError(
            f"Azure ML refuses ({status}): {text}; whoever is signed in needs the role AzureML Data Scientist "
            "on the workspace"
        )
    if "BlobAlreadyExists" in str(getattr(error, "error_code", "")):
        # The storage's own retry of a file whose upload had no answer. The next try has a folder of its own.
        return AmlUnavailable(f"a file of the code was stored, and the answer was lost: {text}; {BUSY}")
    broke_off = isinstance(error, NotSent | NotAnswered | OSError | HttpResponseError) and status is None
    if broke_off or status in (408, 429) or (status or 0) >= 500:
        return AmlUnavailable(f"Azure ML does not answer as it should: {text}; {UNREACHED if broke_off else BUSY}")
    if isinstance(cause := error.__cause__, AzureError | OSError):
        return translated(cause)  # azure-ai-ml wraps whatever befalls an upload of code as an error of its own
    return AmlError(f"Azure ML refuses{f' ({status})' if status else ''}: {text}")


def _message(error: Exception) -> str:
    """Return the words of an error that Azure wrote for people, on one line."""
    text = getattr(getattr(error, "error", None), "message", None) or getattr(error, "message", None)
    line = plain(str(text or error)) or type(error).__name__
    return cut(line, _LONGEST)

"""A server of this machine under a name that clusters reach: `https://prefect.example.com`."""

from __future__ import annotations

import urllib.error
import urllib.request

from aml_emulator.messages import Answer, Request, ServiceError

_OWN = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding"}
_TIMEOUT_S = 30.0


def published(request: Request, port: int | None) -> Answer:
    """Answers as the server at a port of 127.0.0.1 does.

    Raises:
        ServiceError: 502, where none was published or it does not answer.
    """
    if port is None:
        raise ServiceError(502, "BadGateway", f"nothing is published as {request.host}")
    query = f"?{request.raw_query}" if request.raw_query else ""
    headers = {name: text for name, text in request.headers.items() if name.lower() not in _OWN}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{request.path}{query}", request.body or None, headers, method=request.method
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(asked, timeout=_TIMEOUT_S) as answer:
            return Answer(answer.status, answer.read(), {"Content-Type": answer.headers.get("Content-Type") or ""})
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(), {"Content-Type": error.headers.get("Content-Type") or ""})
    except OSError as error:
        raise ServiceError(502, "BadGateway", str(error)) from None

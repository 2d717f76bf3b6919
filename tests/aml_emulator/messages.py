"""A request as the services see it, and an answer as they give it; nothing of sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """An HTTP request.

    Attributes:
        host: Without a port.
        path: Unquoted, without the query.
    """

    method: str
    host: str
    path: str
    raw_query: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body where it is a JSON object, else empty."""
        return json.loads(self.body) if self.body[:1] == b"{" else {}

    @property
    def line(self) -> str:
        """What faults are matched with."""
        return f"{self.method} {self.host}{self.path}"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """An answer of JSON; `_` in the names of headers stands for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | named)


class ServiceError(Exception):
    """What a service refuses, in the words of Azure's resource manager.

    Args:
        status: Of HTTP.
        code: Such as `UserError`.
        message: For the user.
        headers: Of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.answer = as_json({"error": {"code": code, "message": message}}, status, **(headers or {}))


def not_found(message: str) -> ServiceError:
    return ServiceError(404, "UserError", message)


def no_route(request: Request) -> ServiceError:
    return ServiceError(404, "ResourceNotFound", f"the emulator has no route for {request.line}")

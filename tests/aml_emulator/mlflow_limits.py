"""Where Azure ML's MLflow endpoints are narrower than MLflow's own server; README.md says how each is known."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict, deque
from typing import Any

from aml_emulator.messages import Answer, as_json

METRIC_NAMES, PARAMS, TAGS = 50, 200, 50  # of a run
BATCH = {"metrics": 200, "params": 100, "tags": 100}
METRIC_KEY, PARAM_KEY, TAG_KEY, RUN_NAME = 255, 255, 100, 256  # characters
PARAM_VALUE, TAG_VALUE = 500, 1000
EXPERIMENT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")

_NOT_SORTABLE = re.compile(r"\s*(metrics?|params?|parameters?|tags?)\.", re.IGNORECASE)
_ESCAPED_METRIC = re.compile(r"metrics?\.[`\"]", re.IGNORECASE)
_TAG_DIFFERS = re.compile(r"tags?\.(`[^`]*`|\"[^\"]*\"|[\w.\-]+)\s*!=", re.IGNORECASE)
_QUOTED = re.compile(r"'[^']*'")
_UNKNOWN = re.compile(r"/(logged-models|traces|assessments|datasets|scorers|3\.0)(/|$)")


def refused(message: str, code: str = "INVALID_PARAMETER_VALUE") -> Answer:
    return as_json({"error_code": code, "message": f"Response: {message}"}, 400)


def _over(name: str, limit: int, size: int) -> Answer:
    return refused(
        f"{{'Error': {{'Code': 'ValidationError', 'Message': 'A field of the entity is over the size limit. "
        f"FieldName={name}, Limit={limit}, Size={size}. See https://aka.ms/azure-machine-learning-limits'}}}}"
    )


class MlflowLimits:
    """Counts what runs have, and says no.

    Args:
        per_second: How many calls a second are taken before 429; 0 is any number.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._calls: deque[float] = deque()
        self._names: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def refusal(self, path: str, body: dict[str, Any]) -> Answer | None:
        """Returns what the service would answer instead of MLflow, if so."""
        if self._too_often():
            answer = as_json({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "Too many requests"}, 429)
            return Answer(429, answer.body, {**answer.headers, "Retry-After": "1"})
        if _UNKNOWN.search(path) or path == "/version":
            return Answer(404)  # MLflow 3's endpoints
        if path.endswith("runs/search"):
            return _search(body)
        if path.endswith("experiments/create") and not EXPERIMENT.fullmatch(body.get("name", "")):
            return refused(f"Invalid experiment name '{body.get('name')}'")
        if path.endswith("runs/create"):
            return _run_name(body.get("run_name")) or self._items("", [], [], body.get("tags") or [], count=False)
        if path.endswith("runs/update"):
            return _run_name(body.get("run_name"))
        run = body.get("run_id") or body.get("run_uuid") or ""
        if path.endswith("runs/delete-tag"):
            self._names[run, "Tags"].discard(body.get("key", ""))
        for ending, kind in (("log-metric", 0), ("log-parameter", 1), ("set-tag", 2)):
            if path.endswith(f"runs/{ending}"):
                one = [[body] if kind == other else [] for other in range(3)]
                return self._items(run, one[0], one[1], one[2])
        if path.endswith("runs/log-batch"):
            for kind, limit in BATCH.items():
                if len(body.get(kind) or []) > limit:
                    return refused(f"batch of {len(body[kind])} {kind} over the limit of {limit}")
            return self._items(run, body.get("metrics") or [], body.get("params") or [], body.get("tags") or [])
        return None

    def created(self, run: str, tags: list[dict[str, str]]) -> None:
        """Counts the tags that a run was made with."""
        with self._lock:
            self._names[run, "Tags"] |= {tag["key"] for tag in tags}

    def _too_often(self) -> bool:
        if not self._per_second:
            return False
        with self._lock:
            now = time.monotonic()
            while self._calls and self._calls[0] < now - 1.0:
                self._calls.popleft()
            if len(self._calls) >= self._per_second:
                return True
            self._calls.append(now)
            return False

    def _items(
        self,
        run: str,
        metrics: list[dict[str, Any]],
        params: list[dict[str, Any]],
        tags: list[dict[str, Any]],
        *,
        count: bool = True,
    ) -> Answer | None:
        kinds = (
            ("Metrics", metrics, METRIC_NAMES, METRIC_KEY, None),
            ("Parameters", params, PARAMS, PARAM_KEY, PARAM_VALUE),
            ("Tags", tags, TAGS, TAG_KEY, TAG_VALUE),
        )
        for field, items, _, key_limit, value_limit in kinds:
            for item in items:
                if len(item.get("key", "")) > key_limit:
                    return _over(f"{field}Key", key_limit, len(item["key"]))
                if value_limit and len(str(item.get("value", ""))) > value_limit:
                    return _over(f"{field}Value", value_limit, len(str(item["value"])))
        with self._lock:
            known = {
                field: (self._names[run, field] if count else set()) | {item["key"] for item in items}
                for field, items, *_ in kinds
            }
            for field, _, limit, *_ in kinds:
                if len(known[field]) > limit:
                    return _over(field, limit, len(known[field]))
            if count:
                for field, names in known.items():
                    self._names[run, field] = names
        return None


def _run_name(name: str | None) -> Answer | None:
    return _over("DisplayName", RUN_NAME, len(name)) if name and len(name) > RUN_NAME else None


def _search(body: dict[str, Any]) -> Answer | None:
    for order in body.get("order_by") or []:
        if _NOT_SORTABLE.match(order):
            return refused(f"order_by '{order}' is not supported", "BAD_REQUEST")
    wanted = body.get("filter") or ""
    if _ESCAPED_METRIC.search(wanted):
        return refused("escaped metric names are not supported in filters", "BAD_REQUEST")
    if _TAG_DIFFERS.search(wanted):
        return refused("the operator != is not supported for tags", "BAD_REQUEST")
    if re.search(r"\bOR\b", _QUOTED.sub("''", wanted), re.IGNORECASE):
        return refused("OR is not supported in filters", "BAD_REQUEST")
    return None

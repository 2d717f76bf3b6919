"""Asking a server on this machine, over plain HTTP."""

from __future__ import annotations

from typing import Any

import httpx


def request(method: str, url: str, **options: Any) -> httpx.Response:
    """As httpx does, without the user's proxies, nor certificates: to read those takes 40 ms of CPU each time."""
    return httpx.request(method, url, trust_env=False, verify=False, **options)

"""A headless Chromium for tests of pages: what a person reads there, and pictures of it for the docs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from debian import require
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

DOCS_IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Set by `make pictures`.
RENEW = "PLATO_RENEW_PICTURES"
# Long enough for a machine that trains on all its CPUs meanwhile.
PATIENCE_MS = 30_000
_SETTLED_MS = 1_500
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # What a page may not ask for, it does not get either.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def renewing() -> bool:
    """Whether the docs' pictures are to be made anew."""
    return os.environ.get(RENEW) == "1"


@dataclass
class Pages:
    """A browser with a new profile.

    Args:
        context: Playwright's.
        folder: For the pictures.
        asked: The addresses that pages have asked for, web sockets with them.
    """

    context: BrowserContext
    folder: Path
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on("page", self._listen)

    @contextlib.contextmanager
    def open(self, url: str, height: int = 900) -> Iterator[Page]:
        """Opens a page in a tab of its own.

        Args:
            url: Its address.
            height: Of the window, in pixels. What lies below its end, Prefect's UI may not even put into the page.
        """
        page = self.context.new_page()
        try:
            self.sized(page, height).goto(url)
            yield page
        finally:
            page.close()

    def sized(self, page: Page, height: int = 900) -> Page:
        """Gives a tab that a page has opened the window's size, and returns it."""
        page.set_viewport_size({"width": 1360, "height": height})
        return page

    def take(self, page: Page, name: str, *shown: Locator) -> None:
        """Takes a picture of what the window shows, for the docs too if they are renewed.

        Args:
            page: The page.
            name: Of the picture.
            shown: What must be in view, each in turn.
        """
        for locator in shown:
            locator.scroll_into_view_if_needed()
        page.wait_for_timeout(_SETTLED_MS)  # charts and panels glide into their places
        page.screenshot(path=(path := self.folder / f"{name}.png"))
        if renewing():
            shutil.copyfile(path, DOCS_IMAGES / path.name)
        assert (DOCS_IMAGES / path.name).is_file(), "the docs lack this picture; renew them with: make pictures"

    def outside(self) -> list[str]:
        """Returns what pages have asked of other hosts than this machine."""
        schemes = ("http", "https", "ws", "wss")
        parts = {url: urlsplit(url) for url in self.asked}
        return [url for url, part in parts.items() if part.scheme in schemes and part.hostname != "127.0.0.1"]

    def _listen(self, page: Page) -> None:
        page.on("websocket", lambda socket: self.asked.append(socket.url))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Pages]:
    """Runs Debian's Chromium, or skips the test where there is none.

    Args:
        folder: An empty folder for its profile and the pictures.
    """
    program = require("chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile", executable_path=program, headless=True, args=_FLAGS, timezone_id="UTC", locale="en-US"
        )
        try:
            yield Pages(context, folder)
        finally:
            context.close()

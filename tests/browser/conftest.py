"""One server and one browser for all tests here, and windows that fail a test for whatever should not happen."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.server import Server, running

WATCH = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.sample}`));
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's own Chromium."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        if os.environ.get("HARKEN_REQUIRE_ALL") == "1":
            pytest.fail("no chromium: install it (.ci/run does)")
        pytest.skip("no chromium: install it (.ci/run does)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running `harken ui` with an owner, Olga."""
    with running(tmp_path_factory.mktemp("ui")) as server:
        yield server


@pytest.fixture
def window(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open windows of people: whatever runs or loads there that should not fails the test."""
    problems: list[str] = []
    pages: list[Page] = []

    def note(text: str) -> None:
        # What the browser notes where a test cuts the line, or where the server refuses something.
        if not re.match(
            r"Failed to load resource: (net::ERR_FAILED|the server responded with a status of 4\d\d)", text
        ):
            problems.append(text)

    def make(server: Server, session: str = "", **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 1500}, **settings})
        context.add_init_script(WATCH)
        if session:
            context.add_cookies([{"name": "harken", "value": session, "url": server.address}])
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.on(
            "request",
            lambda request: None if request.url.startswith(server.address) else problems.append(request.url),
        )
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.context.close()
    assert not problems


@pytest.fixture
def page(window: Callable[..., Page], server: Server) -> Page:
    """A window of the owner."""
    return window(server, server.session)

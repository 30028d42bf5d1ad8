"""A running `harken ui` for tests in a browser, and what they put into its store and find there."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from harken.config.project import ProjectConfig
from harken.feedback.exchange import read_harken
from harken.feedback.store import FeedbackStore
from harken.feedback.tasks import TaskLine
from harken.records import Judgment
from tests.feedback.working import SOURCE, Workshop

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "A plain answer.",
    "# A heading\n\n- **bold** `code`\n\n```\nlines\n```",
    "<script>document.title = 'pwned'</script> <img src=x onerror=alert(1)>",
    "\u0647\u0630\u0627 \u0646\u0635 \u0639\u0631\u0628\u064a",
    "hidden\u200b and \u202etheg\u202c",
    "{{7*7}} </textarea> & \U0001f600 \u00e9",
    "line ends\r\nof another system\r\n",
)
"""Texts that a page could distort."""


@dataclass(frozen=True)
class Server:
    """A running `harken ui`."""

    address: str
    store: str
    session: str
    """Of the owner; logging in for each test would reach the limit of log-ins."""

    @contextmanager
    def work(self) -> Iterator[Workshop]:
        """The store behind the app."""
        with FeedbackStore.open(self.store) as store:
            yield Workshop.over(store)

    def project(self, kind: str, lines: Sequence[dict[str, Any]], guideline: str = "Be *fair*.", **config: Any) -> str:
        """Make a project with these tasks and return its id; `task` in `config` is about the kind."""
        task = {"kind": kind, **config.pop("task", {})}
        with self.work() as work:
            name = config.pop("name", f"{kind} {len(work.projects.all())}")
            settings = ProjectConfig.model_validate({"task": task, **config})
            made = work.projects.make(name, settings, guideline=guideline)
            work.projects.add_tasks(made.id, [TaskLine.model_validate(line) for line in lines], SOURCE)
        return made.id

    def judgments(self, project: str) -> list[Judgment]:
        """All judgments of a project, the superseded ones too, oldest first."""
        with self.work() as work:
            found = list(work.store.judgments(include_superseded=True))
        return [one for one in found if one.assignment is not None and one.assignment.project == project]


@contextmanager
def running(folder: Path, source: Path = ROOT / "src") -> Iterator[Server]:
    """Start the app of the package in `source` on a fresh SQLite store, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{folder / 'f.db'}"
    code = "from harken.cli import main; main()"
    command = [sys.executable, "-c", code, "ui", "--store", store, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(source)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/login", process)
        with FeedbackStore.open(store) as opened:
            work = Workshop.over(opened)
            session = work.accounts.log_in(work.person("Olga", "owner"))
        yield Server(address, store, session)
    finally:
        process.terminate()
        _, problems = process.communicate(timeout=30)
    assert "Traceback" not in problems, problems[-3000:]


def _wait_for(address: str, process: subprocess.Popen[str], most_s: float = 120) -> None:
    end = time.monotonic() + most_s
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(address).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"no answer from {address} within {most_s:g} s")


def exported(server: Server, project: str, folder: Path) -> tuple[dict[str, str], list[Judgment]]:
    """Texts by id, and the judgments of one project, from an export."""
    if not folder.exists():
        with server.work() as work:
            work.store.export(folder)
    records = read_harken(folder)
    texts = {one.id: one.message.content for one in records.completions}
    found = [one for one in records.judgments if one.assignment is not None and one.assignment.project == project]
    return texts, found


def shown_texts(page: Page) -> list[str]:
    """Texts of the completions as they stand on the page, from first to last place."""
    by_place: dict[int, str] = {}
    for element in page.query_selector_all(".completion"):
        raw = element.query_selector(".raw, .raw-always")
        assert raw is not None
        by_place[int(element.get_attribute("data-place") or 1)] = raw.text_content() or ""
    return [by_place[place] for place in sorted(by_place)]


def as_shown(text: str) -> str:
    """A text as its raw form stands on the page: what cannot be seen as its code."""
    for letter in "\u200b\u202e\u202c\r":
        text = text.replace(letter, f"U+{ord(letter):04X}")
    return text


def start(page: Page, server: Server, project: str) -> None:
    """Open a project and take its first task."""
    page.goto(f"{server.address}/projects/{project}")
    page.click("button.primary")
    page.wait_for_url("**/tasks/*")


def sent(page: Page, before: str) -> None:
    """Wait until an answer is saved and the next page is there."""
    page.wait_for_url(lambda url: url != before)

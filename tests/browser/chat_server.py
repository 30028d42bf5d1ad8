"""A running `harken ui --chat` whose two models a test has written, and what people do in it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from harken.feedback.store import Accounts, FeedbackStore
from tests.browser.server import ROOT, Server
from tests.feedback.scripted import service
from tests.feedback.working import PASSWORD

MODELS = ("alpha-owl", "beta-fox")
ODD = "<script>document.title = 'pwned'</script> a\u202eb **x** \U0001f600"


def _say(body: dict[str, Any]) -> str:
    """What both models write, by the newest message; the model's own mark is a word that is no name of it."""
    asked = body["messages"][-1]["content"]
    mark = {"alpha-owl": "feathers", "beta-fox": "whiskers"}[body["model"]]
    if "fail" in asked and body["model"] == "beta-fox":
        return "FAIL"
    if "who" in asked:
        return (
            f"I am glad you ask. I am {body['model']} and that is all." if body["model"] == "alpha-owl" else "Nobody."
        )
    if "same" in asked:
        return "The same words."
    count = 300 if "long" in asked else 6
    turns = sum(message["role"] == "user" for message in body["messages"])
    return f"{mark} turn {turns}: {asked} {ODD} " + " ".join(f"w{number}" for number in range(count))


@dataclass(frozen=True)
class ChatServer(Server):
    """A running `harken ui --chat`."""

    command: list[str]
    processes: list[subprocess.Popen[str]]
    """The last one runs."""

    @property
    def process(self) -> subprocess.Popen[str]:
        """The one that runs."""
        return self.processes[-1]

    def start_again(self) -> None:
        """Start it again after it was killed."""
        self.processes.append(start_chat(self.command, self.address))


def start_chat(command: list[str], address: str) -> subprocess.Popen[str]:
    """Start a server and return when it answers."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HARKEN_MODEL_KEY": "a-secret-key"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/login").close()
            break
        except urllib.error.URLError:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
    return process


@contextmanager
def chatting(folder: Path) -> Iterator[ChatServer]:
    """Start the app with two models on a fresh SQLite store, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store, address = f"sqlite:///{folder / 'f.db'}", f"http://127.0.0.1:{port}"
    with service(_say, delay_s=0.01) as models:
        code = "from harken.cli import main; main()"
        command = [sys.executable, "-c", code, "ui", "--store", store, "--port", str(port), "--chat"]
        command += [f"{models}#{model}" for model in MODELS] + ["--chat-set", "turns_a_minute=1000"]
        process = start_chat(command, address)
        with FeedbackStore.open(store) as opened:
            accounts = Accounts(opened.database)
            session = accounts.log_in(accounts.join(accounts.first_invitation(), "Olga", PASSWORD))
        found = ChatServer(address, store, session, command, [process])
        try:
            yield found
        finally:
            found.process.terminate()
            _, problems = found.process.communicate(timeout=20)
        assert "Traceback" not in problems
        assert "a-secret-key" not in problems


def send(page: Page, words: str) -> None:
    """Send a message."""
    page.fill("#text", words)
    page.press("#text", "Enter")


def both_answered(page: Page) -> None:
    """Wait for both answers."""
    page.wait_for_selector("#status:has-text('Both have answered')")


def both_began(page: Page) -> None:
    """Wait until something of both answers stands there."""
    # By hand: waiting inside the page needs eval, which the page forbids.
    deadline = time.monotonic() + 20
    while min(len(text) for text in answers(page)) < 60:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(page: Page) -> list[str]:
    """What stands there of both answers."""
    return [page.text_content(f"[data-place='{place}'] [data-text]") or "" for place in (1, 2)]

"""Somebody new finishes a first comparison within 30 seconds of opening the link they were sent."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page

from harken.feedback.store import audit, people
from harken.records import Comparison
from tests.browser.server import running

# The keystroke-level model of Card, Moran and Newell (1980), in seconds: an average typist's key, pointing at something
# and clicking it, the hand from keyboard to mouse, and a moment of thought before each step.
KEY_S, CLICK_S, HAND_S, THINK_S = 0.28, 1.3, 0.4, 1.35


@dataclass
class Hand:
    """A person at the page, whose every act is done there and takes its time on paper."""

    page: Page
    seconds: float = 0.0
    clicks: int = 0
    keys: int = 0

    def click(self, selector: str) -> None:
        self.page.click(selector)
        self.clicks += 1
        self.seconds += THINK_S + HAND_S + CLICK_S

    def type(self, words: str) -> None:
        self.page.keyboard.type(words)
        self.keys += len(words)
        self.seconds += HAND_S + KEY_S * len(words)

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.keys += 1
        self.seconds += THINK_S + KEY_S


def test_a_first_comparison_takes_less_than_half_a_minute(window: Callable[..., Page], tmp_path: Path) -> None:
    with running(tmp_path) as server:
        lines = [{"prompt": f"Which, {one}?", "completions": [f"One {one}", f"Other {one}"]} for one in "ab"]
        project = server.project("comparison", lines)
        with server.work() as work:
            owner = next(one for one in work.accounts.everyone() if one.role == "owner")
            token = work.accounts.invite("annotator", owner)
            with work.store.database.writing() as connection:
                text = "You may stop whenever you want to."
                people.publish_consent_text(connection, "participation", "1", text, actor=audit.COMMAND_LINE)
        page = window(server)
        hand = Hand(page)
        began = time.perf_counter()
        page.goto(f"{server.address}/join/{token}")
        page.wait_for_selector("[name=name]:focus")  # the first field has the focus
        hand.type("Kim")
        hand.press("Tab")
        hand.type("a long password")
        hand.press("Enter")
        page.wait_for_url(lambda url: "/consent?" in url)
        hand.click("main form button.primary")
        page.wait_for_url(f"{server.address}/")
        hand.click("article button.primary")
        page.wait_for_url("**/tasks/*")
        hand.click("label.choice")
        hand.click("button[value=answer]")
        page.wait_for_selector("#receipt")
        machine_s = time.perf_counter() - began
        (judgment,) = server.judgments(project)
    assert isinstance(judgment.answer, Comparison)
    assert judgment.answer.outcome == "win"
    assert hand.clicks == 4
    # What a person needs and what the pages took meanwhile; reading is not in it.
    assert hand.seconds + machine_s < 30, (hand, machine_s)

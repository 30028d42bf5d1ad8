"""The live chat in a real browser: blind, streamed, voted on at any time, and training gets exactly what was chosen."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from harken.config.preferences import PreferencesConfig
from harken.feedback.exchange import read_harken
from harken.feedback.store import FeedbackStore
from harken.preferences.pairs import preferences_from_export
from harken.records import Comparison, Judgment
from tests.browser.chat_server import MODELS, ChatServer, answers, both_answered, both_began, chatting, send
from tests.browser.server import as_shown

pytestmark = pytest.mark.usefixtures("browser")
NOTE_WHEN_SENT = """
for (const button of document.querySelectorAll("[name=outcome]")) {
  new MutationObserver(() => {
    const texts = [...document.querySelectorAll("[data-text]")].map((box) => box.textContent);
    if (button.disabled) window.name ||= JSON.stringify(texts);
  }).observe(button, { attributes: true });
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    with chatting(tmp_path_factory.mktemp("chat")) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: ChatServer) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    page.on("request", lambda request: None if request.url.startswith(server.address) else problems.append(request.url))
    context.add_cookies([{"name": "harken", "value": server.session, "url": server.address}])
    page.goto(f"{server.address}/chat")
    yield page
    context.close()
    assert not problems


def _conversation(page: Page) -> str:
    return page.get_attribute("#chat", "data-conversation") or ""


def _own(server: ChatServer, page: Page, folder: Path) -> tuple[dict[str, Any], list[Judgment]]:
    with FeedbackStore.open(server.store) as store:
        store.export(folder)
    records = read_harken(folder)
    texts, judgments = {one.id: one for one in records.completions}, list(records.judgments)
    tag = f"conversation:{_conversation(page)}"
    return texts, [one for one in judgments if one.assignment is not None and tag in one.assignment.tags]


def _vote_now(page: Page, choice: int, by: str) -> None:
    before = page.url
    if by == "keys":
        page.keyboard.press(str(choice + 1))
        page.keyboard.press("Enter")
    else:
        page.click(f"label.choice:nth-of-type({choice + 1})")
        page.click("button[value=answer]")
    page.wait_for_url(lambda url: "saved=" in url and url != before)


def test_what_is_voted_is_what_training_gets(page: Page, server: ChatServer, tmp_path: Path) -> None:
    draw = random.Random(4)
    clicked: list[tuple[list[str], int]] = []
    for number in range(6):
        send(page, f"question {number}")
        both_answered(page)
        html = page.content()
        assert not any(model in html for model in MODELS) or number > 0
        choice = draw.randrange(9)
        clicked.append((answers(page), choice))
        _vote_now(page, choice, ("keys", "mouse")[number % 2])
        assert all(model in page.content() for model in MODELS)  # revealed by the vote
    completions, judgments = _own(server, page, tmp_path / "export")
    assert len(judgments) == 6
    sides: set[str] = set()
    kept: list[str] = []
    for judgment, (shown, choice) in zip(judgments, clicked, strict=True):
        texts = [completions[one].message.content for one in judgment.shown]
        assert [as_shown(text) for text in texts] == shown
        answer = judgment.answer
        assert isinstance(answer, Comparison)
        if choice == 4:
            assert answer.outcome == "tie"
            kept.append(texts[0])
        else:
            winner = 0 if choice < 4 else 1
            assert answer.winner == judgment.shown[winner]
            assert answer.strength == (3 - choice if choice < 4 else choice - 5)
            kept.append(texts[winner])
        sides.add(completions[judgment.shown[0]].model)
    assert sides == set(MODELS)  # chance of a false alarm: 1 in 32
    pairs, _ = preferences_from_export(tmp_path / "export", PreferencesConfig(heldout_fraction=0.0))
    by_id = {pair.judgment_ids[0]: pair for pair in pairs}
    for judgment in judgments:
        answer = judgment.answer
        assert isinstance(answer, Comparison)
        if answer.winner is None:
            assert judgment.id not in by_id
        else:
            assert by_id[judgment.id].chosen.content == completions[answer.winner].message.content
            said = [message.content for message in by_id[judgment.id].prompt.messages]
            turn = judgments.index(judgment)
            # The conversation went on from the chosen answer, each time.
            assert said[1::2] == kept[:turn]
            assert said[0::2] == [f"question {number}" for number in range(turn + 1)]


def test_a_vote_before_the_end_stores_what_was_seen(page: Page, server: ChatServer, tmp_path: Path) -> None:
    send(page, "a long one")
    both_began(page)
    # Noted in the page when the vote is sent, so that no piece comes in between.
    page.evaluate(NOTE_WHEN_SENT)
    _vote_now(page, 0, "keys")
    seen = json.loads(page.evaluate("window.name"))
    completions, judgments = _own(server, page, tmp_path / "export")
    (judgment,) = judgments
    texts = [completions[one].message.content for one in judgment.shown]
    assert all("w299" not in text for text in texts)
    assert [as_shown(text) for text in texts] == seen
    assert [completions[one].finish_reason for one in judgment.shown] == [None, None]


def test_stopping_keeps_what_was_shown(page: Page, server: ChatServer, tmp_path: Path) -> None:
    send(page, "a long one")
    both_began(page)
    page.keyboard.press("Escape")
    both_answered(page)
    shown = answers(page)
    assert all("w299" not in text for text in shown)
    page.reload()
    assert answers(page) == shown  # it was in the store already
    before = page.url
    page.keyboard.press("b")
    page.wait_for_url(lambda url: "saved=" in url and url != before)
    completions, judgments = _own(server, page, tmp_path / "export")
    answer = judgments[0].answer
    assert isinstance(answer, Comparison)
    assert answer.outcome == "both_bad"
    assert [as_shown(completions[one].message.content) for one in judgments[0].shown] == shown


def test_an_answer_that_gives_its_name_away_is_covered(page: Page, server: ChatServer, tmp_path: Path) -> None:
    send(page, "who are you")
    both_answered(page)
    named = page.locator("[data-named]:not([hidden])")
    assert named.count() == 1
    place = page.locator(".completion.live", has=named).get_attribute("data-place")
    side = page.locator(f".completion.live[data-place='{place}']")
    assert "alpha" not in page.inner_text("main")
    side.locator("[data-uncover]").click()
    assert "alpha-owl" in side.inner_text()
    _vote_now(page, 8, "keys")
    _, judgments = _own(server, page, tmp_path / "export")
    assert judgments[0].assignment is not None
    assert "names-a-model" in judgments[0].assignment.tags


def test_a_failed_model_is_told_without_its_name(page: Page) -> None:
    send(page, "please fail")
    failure = page.wait_for_selector(".failure")
    assert failure is not None
    page.wait_for_selector("#again:not([hidden])")
    told = page.inner_text("main")
    assert "HTTP 500" in told
    assert not any(model in told for model in MODELS)
    assert page.is_disabled("button[value=answer]")
    page.keyboard.press("a")
    page.wait_for_selector(".failure")


def test_a_restart_loses_nothing_that_has_a_receipt(page: Page, server: ChatServer, tmp_path: Path) -> None:
    send(page, "one")
    both_answered(page)
    _vote_now(page, 0, "keys")
    send(page, "two, a long one")
    both_began(page)
    server.process.kill()
    server.process.communicate()
    page.wait_for_selector("#trouble:not([hidden])")
    assert "still here" in page.inner_text("#trouble")
    assert page.input_value("#text") == "two, a long one"
    server.start_again()
    page.reload()
    assert page.input_value("#text") == "two, a long one"
    assert len(page.query_selector_all(".past-turn")) == 1
    page.press("#text", "Enter")
    both_began(page)
    _vote_now(page, 8, "keys")
    _, judgments = _own(server, page, tmp_path / "export")
    assert len(judgments) == 2


def test_equal_answers_have_no_winner(page: Page) -> None:
    send(page, "the same please")
    both_answered(page)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:not([hidden])")
    assert re.search("same text", page.inner_text("#trouble"))
    _vote_now(page, 4, "keys")

"""The live chat can be used by everybody: axe at each stage, light, dark, narrow, enlarged; and by keyboard alone."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page

from harken.records import Comparison
from tests.browser.chat_server import ChatServer, answers, both_answered, both_began, chatting
from tests.browser.looking import axe, look

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    with chatting(tmp_path_factory.mktemp("chat")) as server:
        yield server


def _tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(40):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with Tab")


@pytest.mark.timeout(300)
def test_the_chat_is_accessible_at_each_stage(window: Open, chat: ChatServer) -> None:
    page = window(chat, chat.session, viewport={"width": 1280, "height": 900})
    page.goto(f"{chat.address}/chat")
    problems = [f"empty: {text}" for text in look(page)]
    page.keyboard.press("?")  # in the text box it is a letter
    page.fill("#text", "a long one, " + "averylongwordwithoutanybreaks" * 8)
    page.press("#text", "Enter")
    both_began(page)
    problems += [f"while they write: {text}" for text in axe(page)]
    page.keyboard.press("Escape")
    both_answered(page)
    problems += [f"answered: {text}" for text in look(page)]
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#receipt")
    problems += [f"voted: {text}" for text in look(page)]
    for words, ready in (("who are you", "[data-named]:not([hidden])"), ("please fail", ".failure")):
        page.goto(f"{chat.address}/chat")
        page.fill("#text", words)
        page.press("#text", "Enter")
        page.wait_for_selector(ready)
        page.wait_for_selector("#stop", state="hidden")
        problems += [f"{words}: {text}" for text in look(page)]
    page.locator("h1").click()
    page.keyboard.press("?")
    problems += [f"help: {text}" for text in axe(page)]
    assert not problems, "\n".join(problems)


def test_a_conversation_without_a_mouse(window: Open, chat: ChatServer) -> None:
    page = window(chat, chat.session)
    page.goto(f"{chat.address}/chat")
    page.wait_for_selector("#text:focus")  # the text box has the focus when the page opens
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("a long one")
    page.keyboard.press("Enter")
    both_began(page)
    page.keyboard.press("Escape")
    both_answered(page)
    seen = answers(page)
    assert "first line a long one" in " ".join(seen[0].split())
    page.keyboard.press("w")
    page.keyboard.type("because")
    page.keyboard.press("Escape")
    page.keyboard.press("9")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.value") == "2-2"
    page.keyboard.press("Enter")
    page.wait_for_selector("#receipt")
    # On with the arrow keys and Tab alone, without any letter as a key.
    page.wait_for_selector("#text:focus")
    page.keyboard.type("who are you")
    page.keyboard.press("Enter")
    both_answered(page)
    _tab_to(page, "[data-uncover]")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent").strip()
    _tab_to(page, "[name=choice]")
    page.keyboard.press("Space")
    _tab_to(page, "button[value=both_bad]")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=none was kept")
    with chat.work() as work:
        *_, first, second = work.store.judgments()  # the test before left some
    assert isinstance(first.answer, Comparison)
    assert isinstance(second.answer, Comparison)
    assert (first.answer.winner, first.answer.strength, first.rationale) == (first.shown[1], 2, "because")
    assert second.answer.outcome == "both_bad"


def test_single_keys_of_the_chat_can_be_turned_off(window: Open, chat: ChatServer) -> None:
    page = window(chat, chat.session)
    page.goto(f"{chat.address}/chat")
    page.wait_for_selector("#text:focus")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    both_answered(page)
    page.keyboard.press("?")
    page.focus("#keys-on")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    for key in ("1", "b", "u", "w"):
        page.keyboard.press(key)
    page.reload()
    page.keyboard.press("1")
    assert page.query_selector("[name=choice]:checked") is None
    assert page.is_visible("#vote")
    page.evaluate("localStorage.clear()")

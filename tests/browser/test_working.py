"""What goes wrong while people work: lost lines, reloads, two windows, late answers, odd input; nothing is lost."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import update

from harken.feedback.store.work_tables import slots
from harken.feedback.tasks import MAX_TEXT
from harken.records import Comparison, DemonstrationAnswer
from tests.browser.server import Server, sent, shown_texts, start
from tests.feedback.working import PASSWORD


def _pairs(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{name} {number}?", "completions": [f"{name} {number} one", f"{name} {number} two"]}
        for number in range(count)
    ]


def _press(page: Page, *keys: str) -> None:
    """Answer a task by keys and wait for the next page."""
    before = page.url
    for key in keys:
        page.keyboard.press(key)
    sent(page, before)


def test_logging_in_and_out(browser: Browser, server: Server) -> None:
    page = browser.new_context().new_page()
    page.goto(server.address)
    page.fill("input[name=name]", "Olga")
    page.fill("input[name=password]", PASSWORD)
    page.press("input[name=password]", "Enter")
    page.wait_for_url(f"{server.address}/")
    page.click("text=Log out")
    page.wait_for_url(f"{server.address}/login")
    page.context.close()


def test_a_reload_shows_the_draft_in_the_same_order(page: Page, server: Server) -> None:
    start(page, server, server.project("comparison", _pairs("draft", 2)))
    shown = shown_texts(page)
    page.keyboard.press("3")
    page.keyboard.press("w")
    page.keyboard.type("because s b u")
    page.wait_for_selector("#draft:has-text('Draft saved')")
    page.reload()
    assert shown_texts(page) == shown
    assert page.input_value("#rationale") == "because s b u"
    assert page.is_checked("input[value='1-1']")


def test_an_answer_stays_on_the_page_when_the_server_does_not_answer(page: Page, server: Server) -> None:
    start(page, server, server.project("comparison", _pairs("cut", 2)))
    page.route("**/tasks/**", lambda route: route.abort())
    page.keyboard.press("1")
    page.evaluate("document.getElementById('answer').requestSubmit()")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "still here" in page.inner_text("#trouble")
    page.unroute("**/tasks/**")
    _press(page, "Enter")
    assert page.is_visible("#receipt")


def test_the_answer_before_can_be_changed(page: Page, server: Server) -> None:
    project = server.project("comparison", _pairs("undo", 2))
    start(page, server, project)
    _press(page, "1", "Enter")
    page.keyboard.press("z")
    page.wait_for_selector("form[data-answered]")
    page.wait_for_load_state("load")
    assert page.is_checked("input[value='1-3']")
    _press(page, "9", "Enter")
    first, second = server.judgments(project)
    assert second.supersedes == first.id
    assert isinstance(second.answer, Comparison)
    assert second.answer.winner == first.shown[1]


def test_the_same_task_in_two_windows_is_answered_once(window: Callable[..., Page], server: Server) -> None:
    project = server.project("comparison", _pairs("twice", 2))
    one, other = window(server, server.session), window(server, server.session)
    start(one, server, project)
    other.goto(one.url)
    assert shown_texts(other) == shown_texts(one)
    other.keyboard.press("9")
    other.keyboard.press("w")
    other.keyboard.type("my reasons")
    _press(one, "1", "Enter")
    # The other window says that the task is answered, and keeps what stands there.
    other.wait_for_selector("#trouble:has-text('another window')")
    other.keyboard.press("Control+Enter")
    other.wait_for_selector("#trouble:has-text('answered this already')")
    assert other.input_value("#rationale") == "my reasons"
    assert [one.rationale for one in server.judgments(project)] == [""]
    # After a reload it shows the answer that counts, and the next one replaces it.
    other.reload()
    assert other.is_checked("input[value='1-3']")
    _press(other, "5", "Enter")
    answers = [one.answer for one in server.judgments(project) if isinstance(one.answer, Comparison)]
    assert [one.outcome for one in answers] == ["win", "tie"]


def test_a_double_click_on_save_is_one_answer(page: Page, server: Server) -> None:
    project = server.project("comparison", _pairs("double", 3))
    start(page, server, project)
    before = page.url
    page.keyboard.press("2")
    page.dblclick("button[value=answer]", no_wait_after=True)
    sent(page, before)
    page.wait_for_selector("#receipt")
    assert len(server.judgments(project)) == 1
    # The next task is untouched by the second click.
    assert page.query_selector("input[name=choice]:checked") is None


def test_a_late_answer_is_kept_and_the_page_says_so(page: Page, server: Server) -> None:
    late = server.project("comparison", _pairs("late", 1))
    start(page, server, late)
    with server.work() as work:
        expired = update(slots).where(slots.c.lease_id == page.url.rpartition("/")[2]).values(expires_at=0.0)
        with work.store.database.writing() as connection:
            connection.execute(expired)
        work.leases.claim(late, work.person("Late Lea").id)
    page.keyboard.press("4")
    page.wait_for_selector("#trouble:has-text('somebody else has it now')")
    _press(page, "Enter")
    (judgment,) = server.judgments(late)
    assert judgment.assignment is not None
    assert judgment.assignment.surplus


def test_an_answer_that_is_not_complete_is_not_sent(page: Page, server: Server) -> None:
    project = server.project("comparison", _pairs("empty", 1), rationale="required")
    start(page, server, project)
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('input[name=choice]').validationMessage")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:has-text('Say why')")
    assert page.is_checked("input[value='1-3']")
    assert server.judgments(project) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_huge_and_odd_texts(page: Page, server: Server) -> None:
    lines = "\n".join(f"- line **{number}** of `many`" for number in range(10_000))
    huge = "word " * (MAX_TEXT // 5)
    odd = "\u202eevil\u202c \u200bhidden\u0007 \ufffe \U000e0041 e\u0301"
    project = server.project("demonstration", [{"prompt": text} for text in (lines, huge, odd)])
    start(page, server, project)
    assert "line 9999" in page.inner_text(".prompt").replace("*", "")
    page.fill("#text", "x" * (MAX_TEXT + 1))
    page.press("#text", "Control+Enter")
    page.wait_for_selector(f"#trouble:has-text('at most {MAX_TEXT}')")
    assert len(page.input_value("#text")) == MAX_TEXT + 1
    page.fill("#text", huge)
    before = page.url
    page.press("#text", "Control+Enter")
    sent(page, before)
    page.fill("#text", odd)
    before = page.url
    page.press("#text", "Control+Enter")
    sent(page, before)
    assert "U+202E" in page.inner_text(".prompt")
    answers = [one.answer for one in server.judgments(project)]
    assert [one.text for one in answers if isinstance(one, DemonstrationAnswer)] == [huge, odd]

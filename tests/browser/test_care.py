"""What keeps people from harm, in a browser: covered texts, breaks, and the pages about it."""

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page

from harken.feedback.store import audit, people
from tests.browser.looking import axe, look
from tests.browser.server import Server, start

BLUR = "[...document.querySelectorAll('.covered')].map((one) => [getComputedStyle(one).filter, one.inert])"


def _marked(server: Server, kind: str = "comparison", num_tasks: int = 2, **config: Any) -> str:
    tasks = [
        {"prompt": f"A wound, number {n}?", "completions": ["It bled.", "It healed."], "tags": ["injury"]}
        for n in range(num_tasks)
    ]
    return server.project(kind, tasks, sensitive_tags=["injury"], **config)


def test_texts_stay_blurred_and_out_of_reach_until_they_are_uncovered_by_key(page: Page, server: Server) -> None:
    project = _marked(server)
    start(page, server, project)
    assert page.locator(".warned").inner_text().startswith("This task is marked injury")
    covered = page.evaluate(BLUR)
    assert len(covered) == 2
    assert all(blur.startswith("blur(") and is_inert for blur, is_inert in covered)
    assert not axe(page)
    # Neither a choice nor an answer can be given to what nobody has seen; leaving it is always possible.
    for key in ("1", "Enter", "b"):
        page.keyboard.press(key)
    assert page.locator("input[name=choice]:checked").count() == 0
    assert page.locator("button[value=answer]").is_disabled()
    assert page.locator("button[value=skip]").is_enabled()
    assert server.judgments(project) == []
    page.keyboard.press("v")
    assert page.evaluate(BLUR) == [["none", False], ["none", False]]
    assert not axe(page)
    page.keyboard.press("v")
    assert not look(page)
    page.keyboard.press("v")
    page.keyboard.press("v")
    assert page.evaluate(BLUR)[0][1]
    page.keyboard.press("v")
    before = page.url
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != before)
    # The next one is covered again.
    assert page.evaluate(BLUR)[0][1]
    assert len(server.judgments(project)) == 1


def test_covered_without_scripts_too(window: Callable[..., Page], server: Server) -> None:
    page = window(server, server.session, java_script_enabled=False)
    start(page, server, _marked(server))
    assert page.locator(".covered").first.evaluate("(one) => getComputedStyle(one).filter").startswith("blur(")
    page.check("#uncover")
    assert page.locator(".covered").first.evaluate("(one) => getComputedStyle(one).filter") == "none"


def test_a_break_is_proposed_after_long_work_and_not_after_a_pause(window: Callable[..., Page], server: Server) -> None:
    page = window(server, server.session)
    project = server.project("comparison", [{"prompt": "Tired?", "completions": ["a", "b"]}], break_minutes=50)
    worked = "([since, last]) => localStorage.setItem('harken-worked', `${Date.now() - since} ${Date.now() - last}`)"
    start(page, server, project)
    assert page.locator("#break").is_hidden()
    page.evaluate(worked, [51 * 60_000, 6 * 60_000])  # a pause of six minutes before this page
    page.reload()
    assert page.locator("#break").is_hidden()
    page.evaluate(worked, [51 * 60_000, 60_000])
    page.reload()
    assert "51 minutes without a pause" in page.locator("#break").inner_text()
    assert not axe(page)
    page.click("#break-later")
    page.reload()
    assert page.locator("#break").is_hidden()
    never = server.project("comparison", [{"prompt": "Never?", "completions": ["a", "b"]}], break_minutes=None)
    page.evaluate(worked, [300 * 60_000, 60_000])
    start(page, server, never)
    assert page.locator("#break").is_hidden()


def test_refusing_a_kind_of_content_and_telling_about_oneself(window: Callable[..., Page], server: Server) -> None:
    with server.work() as work:
        ida = work.person("Ida")
        session = work.accounts.log_in(ida)
        with work.store.database.writing() as connection:
            words = "We ask to know **who** judged, and delete it after two years."
            people.publish_consent_text(connection, "demographics", "1", words, actor=audit.COMMAND_LINE)
            asked = people.current_consent_text(connection, "participation")
            if asked is not None:  # another test's, on the same server
                people.give_consent(connection, ida.id, asked)
    project = _marked(server)
    page = window(server, session)
    start(page, server, project)
    page.click("text=Skip it, and give me no more of these")
    page.wait_for_url(f"**/projects/{project}*")
    page.goto(f"{server.address}/account")
    page.click("text=What you would rather not see")
    assert page.locator("input[value=injury]").is_checked()
    assert not look(page)
    page.goto(f"{server.address}/account/about-you")
    assert page.locator("input:checked").count() == 0
    assert not look(page)
    page.check("input[name=age][value='30 to 44']")
    page.check("input[name=agreed]")
    page.click("button.primary")
    page.wait_for_selector("text=Kept: 1 of 5 answers")
    page.click("text=Delete all of it")
    page.wait_for_selector("text=Deleted: 1 answers")

"""Every page can be used by everybody: axe, enlarged text, narrow windows, right to left, dark, without motion."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.browser.looking import OVERFLOW, axe, look
from tests.browser.pages import fill
from tests.browser.server import TEXTS, Server, start

ARABIC = TEXTS[3]


@pytest.mark.timeout(400)
def test_every_page_is_accessible_light_and_dark_enlarged_and_narrow(page: Page, server: Server) -> None:
    long = (
        "A" * 200
        + " averylongwordwithoutanybreaks" * 5
        + "\n\n| a | b |\n|-|-|\n| "
        + "c" * 300
        + " | d |\n\n```\n"
        + "x" * 300
    )
    pages = fill(server, [*TEXTS[:4], long])
    problems: list[str] = []
    for name, path in pages.items():
        if name.startswith(("/login", "/join")):
            continue  # these look the same for a person who is logged in, and are visited below
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(f"{server.address}{path}")
        problems += [f"{name}: {text}" for text in look(page)]
    page.context.clear_cookies()
    for name in ("/login", "/join/{token}"):
        page.goto(f"{server.address}{pages[name]}")
        problems += [f"{name}: {text}" for text in look(page)]
    assert not problems, "\n".join(problems)


def test_the_judges_themselves_see_what_is_wrong(page: Page, server: Server) -> None:
    page.goto(f"{server.address}/account")
    page.evaluate("""() => {
      const button = document.createElement("button");
      const faint = document.createElement("p");
      faint.textContent = "faint";
      faint.style.color = "#ccc";
      faint.style.width = "200vw";
      document.querySelector("main").append(button, faint);
    }""")
    assert {found.split(":")[0] for found in axe(page)} == {"button-name", "color-contrast"}
    assert page.evaluate(OVERFLOW)


def test_help_is_accessible_and_keeps_the_focus(page: Page, server: Server) -> None:
    start(page, server, server.project("comparison", [{"prompt": "Help?", "completions": ["a", "b"]}]))
    page.keyboard.press("?")
    assert not axe(page)
    for _ in range(6):
        page.keyboard.press("Tab")
        inside = "document.activeElement === document.body || !!document.activeElement.closest('#help')"
        assert page.evaluate(inside)


def test_texts_of_people_have_their_own_direction(page: Page, server: Server) -> None:
    mixed = f"{ARABIC}\n\nEnglish after it.\n\n- {ARABIC}"
    lines = [{"prompt": "Left to right?", "completions": [mixed, "Left to right."]}]
    start(page, server, server.project("comparison", lines, name=f"{ARABIC} name"))
    directions = page.evaluate(
        "[...document.querySelectorAll('.completion .rich')].map((one) => getComputedStyle(one).direction)"
    )
    assert sorted(directions) == ["ltr", "rtl"]
    assert page.evaluate("getComputedStyle(document.querySelector('.crumbs a')).direction") == "rtl"
    # A paragraph in another script stands at the side where it begins.
    edges = page.evaluate("""() => {
      const all = [...document.querySelectorAll(".completion .rich")];
      const box = all.find((one) => getComputedStyle(one).direction === "rtl");
      const side = (node) => {
        const range = new Range();
        range.selectNodeContents(node);
        const text = range.getBoundingClientRect(), around = box.getBoundingClientRect();
        return text.left - around.left < around.right - text.right ? "left" : "right";
      };
      return [...box.querySelectorAll("p")].slice(0, 2).map(side);
    }""")
    assert edges == ["right", "left"]
    page.keyboard.press("w")
    page.keyboard.insert_text(ARABIC)
    assert page.evaluate("getComputedStyle(document.getElementById('rationale')).direction") == "rtl"


def test_a_phone_has_room_for_texts(window: Callable[..., Page], server: Server) -> None:
    page = window(server, server.session, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    project = server.project("rating", [{"prompt": "Room?", "completions": ["a"]}])
    page.goto(server.address)
    heights = [page.locator("header").evaluate("(node) => node.offsetHeight")]
    start(page, server, project)
    heights.append(page.locator("header").evaluate("(node) => node.offsetHeight"))
    assert max(heights) < 90, "the header has more than two rows"
    rows = page.locator(".actions button").evaluate_all("(all) => [...new Set(all.map((one) => one.offsetTop))]")
    assert len(rows) == 1, "the buttons under an answer need more than a row"


def test_nothing_moves_for_who_wants_no_motion(window: Callable[..., Page], server: Server) -> None:
    moving = """() => [...document.querySelectorAll("body *")].filter((node) => {
      const style = getComputedStyle(node);
      return style.animationName !== "none" || style.transitionDuration.split(",").some((time) => parseFloat(time) > 0);
    }).length"""
    for setting in ("reduce", "no-preference"):
        page = window(server, server.session, reduced_motion=setting)
        page.goto(server.address)
        assert (page.evaluate(moving) > 0) == (setting == "no-preference")

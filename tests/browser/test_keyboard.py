"""Each kind of task from start to end by keyboard alone: answer, flag, reasons, draft, undo, change, skip."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page

from harken.records import Abstention, Answer, Comparison
from tests.browser.server import Server, sent

Press = Callable[[Page], None]


def _keys(*keys: str) -> Press:
    def press(page: Page) -> None:
        for key in keys:
            page.keyboard.press(key)

    return press


def _typed(text: str) -> Press:
    def press(page: Page) -> None:
        page.keyboard.press("Escape")  # an empty box has the focus already
        page.keyboard.press("e")
        page.keyboard.press("Control+End")
        page.keyboard.type(text)

    return press


TALK = [("user", "Hi"), ("assistant", "Hello."), ("user", "More?")]
# Kind: options, completions, the keys of a first and of a changed answer, and what both say.
KINDS: dict[str, tuple[dict[str, Any], int, Press, Press, Callable[[Any], object], list[object]]] = {
    "comparison": ({}, 2, _keys("2"), _keys("ArrowRight"), lambda one: one.strength, [2, 1]),
    "ranking": (
        {},
        3,
        _keys("2", "2", "1"),
        _keys("k", "k", "j", "Alt+ArrowUp"),
        lambda one: sorted(one.ranks.values()),
        [[1, 2, 2], [1, 2, 3]],
    ),
    "rating": (
        {"axes": [{"name": "true"}, {"name": "kind"}], "scope": "turns"},
        1,
        _keys("1", "2", "3", "4"),
        _keys("ArrowDown", "ArrowDown", "5"),
        lambda one: [axis.value for part in (*one.turns, one) for axis in part.axes.values()],
        [[1, 2, 3, 4], [1, 2, 5, 4]],
    ),
    "spans": (
        {},
        1,
        _keys("e", "ArrowRight", "Shift+ArrowRight", "2", "m"),
        _keys("e", "ArrowRight", "Shift+L", "Shift+L", "Shift+L", "3", "m"),
        lambda one: [(span.start, span.end, span.label) for span in one.spans],
        [[(7, 11, "logic")], [(7, 9, "language"), (7, 11, "logic")]],
    ),
    "correction": ({}, 1, _typed(" good"), _typed(" better"), lambda one: one.text[11:], [" good", " good better"]),
    "demonstration": ({}, 0, _typed("sbuz"), _typed("!"), lambda one: one.text, ["sbuz", "sbuz!"]),
    "critique": ({}, 1, _typed("sbuz"), _typed("!"), lambda one: one.text, ["sbuz", "sbuz!"]),
}


# Correction and critique have the text box of a demonstration.
SLOW = {"correction", "critique"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in KINDS]
)
@pytest.mark.timeout(400)
def test_a_task_without_a_mouse(page: Page, server: Server, kind: str) -> None:
    task, num_completions, first, change, read, expected = KINDS[kind]
    texts = ["Answer text", "Answer else", "Answer more"][:num_completions]
    prompt = [{"role": role, "content": text} for role, text in TALK]
    lines = [{"prompt": [*prompt[:2], {"role": "user", "content": f"More {n}?"}], "completions": texts} for n in "ab"]
    project = server.project(kind, lines, task=task)
    page.goto(f"{server.address}/projects/{project}")
    page.wait_for_selector("button.primary:focus")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks/*")
    first(page)
    page.keyboard.press("Escape")
    page.keyboard.press("w")
    page.keyboard.type("my reasons")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    # A reload shows everything again.
    form = (
        "JSON.stringify([...new FormData(document.getElementById('answer'))].filter(([name]) => name !== 'active_s'))"
    )
    before = page.evaluate(form)
    page.wait_for_selector("#draft:has-text('Draft saved')")
    page.reload()
    assert page.evaluate(form) == before
    _send(page, "Control+Enter")
    assert page.is_visible("#receipt")
    page.keyboard.press("Escape")
    page.keyboard.press("z")
    page.wait_for_selector("form[data-answered]")
    page.wait_for_load_state("load")
    assert page.input_value("#rationale") == "my reasons"
    change(page)
    _send(page, "Control+Enter")
    page.keyboard.press("Escape")
    _send(page, "s")
    old, new, skipped = server.judgments(project)
    assert [read(old.answer), read(new.answer)] == expected
    assert new.supersedes == old.id
    for judgment in (old, new):
        assert (judgment.rationale, [flag.reason for flag in judgment.flags or ()]) == ("my reasons", ["broken"])
    assert _outcome(skipped.answer) == "skip"


def _send(page: Page, key: str) -> None:
    before = page.url
    page.keyboard.press(key)
    sent(page, before)


def _outcome(answer: Answer) -> str:
    assert isinstance(answer, Comparison | Abstention)
    return answer.outcome


def test_help_tells_the_keys_and_single_keys_can_be_turned_off(page: Page, server: Server) -> None:
    project = server.project("comparison", [{"prompt": "Keys?", "completions": ["a", "b"]}])
    page.goto(f"{server.address}/projects/{project}")
    page.wait_for_selector("button.primary:focus")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks/*")
    page.keyboard.press("?")
    assert "Skip" in page.inner_text("#help")
    page.keyboard.press("s")  # while the help is open no key does anything else
    page.focus("#keys-on")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert page.query_selector("input[name=choice]:checked") is None
    page.reload()
    assert not page.is_checked("#keys-on")
    page.evaluate("localStorage.clear()")
    assert server.judgments(project) == []

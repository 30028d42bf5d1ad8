"""A simulated annotator with known preferences: it clicks or types, and says what must come out of an export."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page

from harken.records import (
    Abstention,
    Comparison,
    Correction,
    Critique,
    DemonstrationAnswer,
    Judgment,
    RankingAnswer,
    Rating,
    Spans,
)
from tests.browser.server import TEXTS, as_shown, shown_texts

Texts = dict[str, str]
Check = Callable[[Judgment, Texts], None]
AXES = [{"name": "honest"}, {"name": "kind", "low": 0, "high": 3}]
TYPED = "Typed: \u00e9\U0001f600 \u0647\u0630\u0627 {{7*7}} <b>not bold</b>\nsecond line"


@dataclass
class Preferred:
    """What `harken preferences` must say, by the texts that were on the page."""

    pairs: set[tuple[str, str, int]] = field(default_factory=set)
    """Better text, worse text, strength."""
    ratings: dict[str, int] = field(default_factory=dict)
    """Text -> value on the first axis."""


def act(page: Page, kind: str, task: dict[str, Any], number: int, draw: random.Random, said: Preferred) -> Check:
    """Answer the task on the page and send it; return what checks the judgment."""
    shown = [] if kind == "demonstration" else shown_texts(page)
    if number % 7 == 6:
        check = _abstain(page, kind, number)
    else:
        check = _KINDS[kind](page, task, shown, number, draw, said)
        if number % 2:
            page.click("button[value=answer]")
        else:
            page.keyboard.press("Control+Enter")

    def check_all(judgment: Judgment, texts: Texts) -> None:
        assert [as_shown(texts[one]) for one in judgment.shown] == shown
        assert judgment.timing.active_s is not None
        check(judgment, texts)

    return check_all


def _abstain(page: Page, kind: str, number: int) -> Check:
    outcomes = ["unsure", "skip", *(["both_bad"] if kind != "demonstration" else [])]
    outcome = outcomes[number // 7 % len(outcomes)]
    if number % 2:
        page.click(f"button[value={outcome}]")
    else:
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press({"both_bad": "b", "unsure": "u", "skip": "s"}[outcome])

    def check(judgment: Judgment, texts: Texts) -> None:
        assert isinstance(judgment.answer, Comparison if kind == "comparison" else Abstention)
        assert judgment.answer.outcome == outcome

    return check


def _compare(
    page: Page, task: dict[str, Any], shown: list[str], number: int, draw: random.Random, said: Preferred
) -> Check:
    inputs = page.query_selector_all("input[name=choice]")
    assert len(inputs) == 2 * (4 if task.get("strengths", True) else 1) + task.get("tie", True)
    index = draw.randrange(len(inputs))
    choice = inputs[index].get_attribute("value") or ""
    if number % 3:
        inputs[index].click()
    else:
        page.keyboard.press(str(index + 1))
    side, _, strength = choice.partition("-")
    if side in ("1", "2"):
        winner, loser = shown[int(side) - 1], shown[2 - int(side)]
        said.pairs.add((winner, loser, int(strength) if strength else 1))

    def check(judgment: Judgment, texts: Texts) -> None:
        answer = judgment.answer
        assert isinstance(answer, Comparison)
        if side == "tie":
            assert (answer.outcome, answer.winner) == ("tie", None)
            return
        assert answer.outcome == "win"
        assert answer.winner is not None
        assert as_shown(texts[answer.winner]) == shown[int(side) - 1]
        assert answer.strength == (int(strength) if strength else None)

    return check


def _rank(
    page: Page, task: dict[str, Any], shown: list[str], number: int, draw: random.Random, said: Preferred
) -> Check:
    count = len(shown)
    if number % 4 == 0 or (number % 4 == 1 and count > 4):  # digits, ties where they are allowed
        ranks = [draw.randint(1, count) for _ in shown]
        if not task.get("ties", True):
            ranks = draw.sample(range(1, count + 1), count)
        for rank in ranks:
            page.keyboard.press(str(rank))
    elif number % 4 == 1:  # buttons: the last one goes up to the first place
        for _ in range(count - 1):
            page.click(f"li[data-place='{count}'] button[data-move='-1']")
        ranks = [*range(2, count + 1), 1]
    elif number % 4 == 2:  # lists
        ranks = draw.sample(range(1, count + 1), count)
        for place, rank in enumerate(ranks, start=1):
            page.select_option(f"select[name=rank-{place}]", str(rank))
    else:  # dragging: the first one goes to the second place
        _drag(page)
        order = [int(one.get_attribute("data-place") or 0) for one in page.query_selector_all("li.ranked")]
        ranks = [order.index(place) + 1 for place in range(1, count + 1)]
        assert ranks != list(range(1, count + 1))
    for one, rank in zip(shown, ranks, strict=True):
        said.pairs |= {(one, other, 1) for other, below in zip(shown, ranks, strict=True) if rank < below}
    steps = sorted(set(ranks))

    def check(judgment: Judgment, texts: Texts) -> None:
        assert isinstance(judgment.answer, RankingAnswer)
        expected = {name: steps.index(rank) + 1 for name, rank in zip(judgment.shown, ranks, strict=True)}
        assert judgment.answer.ranks == expected

    return check


def _drag(page: Page) -> None:
    start = page.locator("li[data-place='1'] .handle").bounding_box()
    end = page.locator("li[data-place='2']").bounding_box()
    assert start is not None
    assert end is not None
    page.mouse.move(start["x"] + 5, start["y"] + 5)
    page.mouse.down()
    page.mouse.move(start["x"], end["y"] + end["height"] - 5, steps=10)
    page.mouse.up()
    page.wait_for_selector("li.ranked:not(.dragged) select:valid")


def _rate(
    page: Page, task: dict[str, Any], shown: list[str], number: int, draw: random.Random, said: Preferred
) -> Check:
    scales = page.query_selector_all("fieldset.axis")
    names = [scale.query_selector("input").get_attribute("name") or "" for scale in scales]  # pyright: ignore[reportOptionalMemberAccess]
    values = [draw.randint(1, 5) if name.endswith("-1") else draw.randint(0, 3) for name in names]
    for name, value in zip(names, values, strict=True):
        if number % 2:
            page.keyboard.press(str(value))
        else:
            page.click(f"label:has(input[name={name}][value='{value}'])")
    by_name = dict(zip(names, values, strict=True))
    said.ratings[shown[0]] = by_name["axis-1"]

    def check(judgment: Judgment, texts: Texts) -> None:
        answer = judgment.answer
        assert isinstance(answer, Rating)
        found = {f"axis-{place}": axis.value for place, axis in enumerate(answer.axes.values(), start=1)}
        for turn in answer.turns or ():
            found |= {
                f"turn-{turn.message}-axis-{place}": axis.value
                for place, axis in enumerate(turn.axes.values(), start=1)
            }
        assert found == by_name
        assert list(answer.axes) == [axis["name"] for axis in AXES]
        scope = task.get("scope", "completion")
        assert (answer.scope, answer.turns is not None) == (
            "conversation" if scope == "conversation" else None,
            scope == "turns",
        )

    return check


def _mark(
    page: Page, task: dict[str, Any], shown: list[str], number: int, draw: random.Random, said: Preferred
) -> Check:
    """Mark the word that holds "wrong", by a double click or with the keys; leave one text in five without a mark."""
    if number % 5 == 4:
        return _marked([], "", "")
    label, severity = draw.choice(["factual", "logic", "language"]), draw.choice(["minor", "major", "critical"])
    word = next(word for word in shown[0].split() if word.startswith("wrong"))
    page.select_option("#span-label", label)
    page.select_option("#span-severity", severity)
    if number % 2:
        box = page.evaluate(_BOX_OF, word)
        page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.click("#span-add")
    else:
        page.focus("#marked")
        for _ in range(shown[0].split().index(word)):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("m")
    return _marked([word], label, severity)


def _marked(words: list[str], label: str, severity: str) -> Check:
    def check(judgment: Judgment, texts: Texts) -> None:
        assert isinstance(judgment.answer, Spans)
        spans = judgment.answer.spans
        assert [texts[one.completion_id][one.start : one.end] for one in spans] == words
        assert all((one.label, one.severity) == (label, severity) for one in spans)

    return check


_BOX_OF = """(word) => {
  const view = document.getElementById("marked");
  const walker = document.createTreeWalker(view, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const at = node.data.indexOf(word);
    if (at < 0) continue;
    view.scrollIntoView();
    const range = new Range();
    range.setStart(node, at);
    range.setEnd(node, at + word.length);
    const { x, y, width, height } = range.getBoundingClientRect();
    return { x, y, width, height };
  }
}"""


def _correct(
    page: Page, task: dict[str, Any], shown: list[str], number: int, draw: random.Random, said: Preferred
) -> Check:
    added = f" mended {number} {TEXTS[5]}"
    if number % 3 == 2:  # nothing to correct
        added = ""
    elif number % 2:
        page.click("#text")
        page.keyboard.press("Control+End")
        page.keyboard.insert_text(added)
    else:
        page.keyboard.press("e")
        page.keyboard.press("Control+End")
        page.keyboard.insert_text(added)
    if added:
        assert added.strip() in page.inner_text("#diff")
        assert page.query_selector("#diff del") is None

    def check(judgment: Judgment, texts: Texts) -> None:
        assert isinstance(judgment.answer, Correction)
        before = texts[judgment.answer.completion_id]
        expected = before.replace("\r\n", "\n") + added if added else before
        assert judgment.answer.text == expected

    return check


def _write(
    page: Page, task: dict[str, Any], shown: list[str], number: int, draw: random.Random, said: Preferred
) -> Check:
    text = f"{TYPED} {number}"
    if number % 2:
        page.click("#text")
    page.keyboard.insert_text(text)

    def check(judgment: Judgment, texts: Texts) -> None:
        answer = judgment.answer
        assert isinstance(answer, Critique | DemonstrationAnswer)
        assert answer.text == text
        if isinstance(answer, Critique):
            assert as_shown(texts[answer.completion_id]) == shown[0]

    return check


_KINDS: dict[str, Callable[..., Check]] = {
    "comparison": _compare,
    "ranking": _rank,
    "rating": _rate,
    "spans": _mark,
    "correction": _correct,
    "demonstration": _write,
    "critique": _write,
}

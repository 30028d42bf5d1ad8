"""Hostile texts in every place where texts of others are shown: nothing runs, loads, or becomes a part of the page.

The window fails a test for every dialog, error, breach of the content policy and request to another host.
"""

from typing import Any

import pytest
from playwright.sync_api import Page

from harken.feedback.web.security import CSP
from tests.browser.hostile import EVIL, VECTORS
from tests.browser.pages import KINDS, fill
from tests.browser.server import Server, start

# What no text may bring into a page.
FOREIGN = """() => {
  const own = (node) => !node.closest(".text, .clip, .past, q, mark, bdi, [dir=auto]:not(textarea, input)");
  const loads = /^(script|style|iframe|object|embed|svg|math|img|video|base|form|link|meta|input|select)$/i;
  const found = [];
  for (const node of document.querySelectorAll("*")) {
    if (loads.test(node.localName) && !own(node)) found.push(node);
    if (node.localName === "script" && !node.src.startsWith(`${location.origin}/static/`)) found.push(node);
    for (const { name, value } of node.attributes) {
      if (/^on|^style$|^hx-|^v-|^x-/i.test(name)) found.push(node);
      if (/^(href|src|action|formaction|data)$/i.test(name) && !/^([/#]|https?:|mailto:)/.test(value)) found.push(node);
      if (name === "href" && /^https?:/.test(value) && !/noopener.*nofollow/.test(node.rel)) found.push(node);
    }
  }
  if (document.querySelectorAll("#answer").length > 1) found.push(document.getElementById("answer"));
  return found.map((node) => node.outerHTML.slice(0, 200));
}"""


def test_the_corpus_is_large_enough() -> None:
    assert len(set(VECTORS)) == len(VECTORS) >= 40


def test_the_judge_itself_sees_what_is_wrong(page: Page, server: Server) -> None:
    page.goto(f"{server.address}/account")
    assert page.evaluate(FOREIGN) == []
    page.evaluate("document.querySelector('bdi').append(document.createElement('iframe'))")
    page.evaluate("document.querySelector('h1').setAttribute('onx', '')")
    page.evaluate("document.querySelector('main a, a').href = 'javascript:1'")
    assert len(page.evaluate(FOREIGN)) == 3


@pytest.mark.timeout(400)
def test_hostile_texts_do_nothing_anywhere(page: Page, server: Server) -> None:
    together = "\n\n".join(VECTORS)
    short = VECTORS[5][:40]
    said: dict[str, Any] = {"name": short, "guideline": together}
    said["task"] = {"question": together}
    with server.work() as work:
        work.person(VECTORS[10])
    pages = fill(server, [together, *(f"{text}\n" for text in VECTORS[:5])], said)
    headers: dict[str, str] = {}
    page.on("response", lambda answer: headers.update({answer.url: answer.headers.get("content-security-policy", "")}))
    problems: list[str] = []
    for name, path in pages.items():
        page.goto(f"{server.address}{path}")
        problems += [f"{name}: {text}" for text in page.evaluate(FOREIGN)]
        if name in KINDS and page.query_selector("#raw-toggle"):
            page.click("#raw-toggle")
            problems += [f"{name} raw: {text}" for text in page.evaluate(FOREIGN)]
            page.click("#raw-toggle")
        assert "49${7" not in page.inner_text("main")
    assert not problems, "\n".join(problems)
    assert len(headers) > len(pages)
    assert set(headers.values()) == {CSP}
    assert not [url for url in headers if EVIL in url]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_hostile_text_by_itself(page: Page, server: Server) -> None:
    # Nine to a page, each a completion of its own: no text can be hidden by one before it.
    lines = [
        {"prompt": f"Part {first}", "completions": list(VECTORS[first : first + 9])}
        for first in range(0, len(VECTORS) // 9 * 9, 9)
    ] + [{"prompt": "Rest", "completions": list(VECTORS[-9:])}]
    project = server.project("ranking", lines)
    start(page, server, project)
    seen: set[str] = set()
    for _ in lines:
        assert page.evaluate(FOREIGN) == []
        seen |= {one.text_content() or "" for one in page.query_selector_all(".completion .raw")}
        before = page.url
        page.keyboard.press("u")
        page.wait_for_url(lambda url, before=before: url != before)
    assert len(seen) == len(VECTORS)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_hostile_answers_are_shown_as_text(page: Page, server: Server) -> None:
    """What annotators write reaches other people on the page of all answers."""
    together = "\n".join(VECTORS).replace("\x0c", "")
    axes = [{"name": VECTORS[0], "low_label": VECTORS[10], "high_label": VECTORS[56]}]
    for kind, task in (
        ("critique", {}),
        ("correction", {}),
        ("rating", {"axes": axes}),
        ("spans", {"labels": [VECTORS[5]]}),
    ):
        project = server.project(kind, [{"prompt": VECTORS[1], "completions": [VECTORS[10]]}], task=task)
        start(page, server, project)
        before = page.url
        if kind in ("critique", "correction"):
            page.fill("#text", together)
        elif kind == "rating":
            page.click("label:has(input[value='2'])")
        else:
            page.keyboard.press("e")
            page.keyboard.press("Shift+ArrowRight")
            page.keyboard.press("m")
        page.keyboard.press("Escape")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        page.fill("#rationale", together)
        page.select_option("#flag_reason", "other")
        page.fill("#flag_note", together)
        assert page.evaluate(FOREIGN) == []
        page.wait_for_selector("#draft:has-text('Draft saved')")
        page.reload()
        assert page.input_value("#rationale") == together
        page.press("#rationale", "Control+Enter")
        page.wait_for_url(lambda url, before=before: url != before)
        (judgment,) = server.judgments(project)
        assert judgment.rationale == together.strip()
        page.goto(f"{server.address}/projects/{project}/review")
        assert page.evaluate(FOREIGN) == []
        assert "<script>alert(1)</script>" in page.inner_text("main")


def test_odd_addresses_and_file_names_do_nothing(page: Page, server: Server) -> None:
    project = server.project("comparison", [{"prompt": "Q", "completions": ["a", "b"]}])
    for path in ("/login?next=javascript:alert(1)", f"/login?next={EVIL}", "/consent?next=//evil.example",
                 f"/projects/{project}?why=<script>alert(1)</script>", "/join/<img src=x onerror=alert(1)>",
                 "/<svg onload=alert(1)>"):  # fmt: skip
        page.goto(f"{server.address}{path}")
        assert page.evaluate(FOREIGN) == []
        assert page.url.startswith(server.address)
    page.goto(f"{server.address}/manage/projects/{project}")
    file = {
        "name": "<img src=x onerror=alert(1)>.jsonl",
        "mimeType": "text/plain",
        "buffer": b"<script>alert(1)</script>",
    }
    page.set_input_files("input[type=file]", file)  # pyright: ignore[reportArgumentType]
    page.click("button:has-text('Add them')")
    assert "bad JSON" in page.inner_text(".problem")
    assert page.evaluate(FOREIGN) == []

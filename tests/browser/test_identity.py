"""What a person clicks is what training gets, text for text: a simulated annotator in a real browser."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from harken.config.project import ProjectConfig
from harken.feedback.exchange import read_harken
from harken.feedback.store import Accounts, FeedbackStore, Projects
from harken.feedback.tasks import TaskLine
from harken.records import Comparison, Judgment, RankingAnswer, Rating
from tests.feedback.working import PASSWORD, SOURCE

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "A plain answer.",
    "# A heading\n\n- **bold** `code`\n\n```\nlines\n```",
    "<script>document.title = 'pwned'</script> <img src=x onerror=alert(1)>",
    "\u0647\u0630\u0627 \u0646\u0635 \u0639\u0631\u0628\u064a",
    "hidden\u200b and \u202etheg\u202c",
    "{{7*7}} </textarea> & \U0001f600 \u00e9",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's own Chromium."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        if os.environ.get("HARKEN_REQUIRE_ALL") == "1":
            pytest.fail("no chromium: install it (.ci/run does)")
        pytest.skip("no chromium: install it (.ci/run does)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass(frozen=True)
class Server:
    """A running `harken ui`."""

    address: str
    store: str
    session: str
    """Of the owner; logging in for each test would reach the limit of log-ins."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ui")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{folder / 'f.db'}"
    code = "from harken.cli import main; main()"
    command = [sys.executable, "-c", code, "ui", "--store", store, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{address}/login").close()
            break
        except urllib.error.URLError:
            time.sleep(0.1)
    with FeedbackStore.open(store) as opened:
        accounts = Accounts(opened.database)
        session = accounts.log_in(accounts.join(accounts.first_invitation(), "Olga", PASSWORD))
    yield Server(address, store, session)
    process.terminate()
    _, problems = process.communicate(timeout=20)
    assert "Traceback" not in problems


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A window, logged in; whatever runs or loads that should not fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 1500})
    page = context.new_page()
    page.set_default_timeout(20_000)
    problems: list[str] = []
    # "Failed to load" is what the browser notes where a test cuts the line.
    page.on(
        "console",
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and not message.text.startswith("Failed to load resource: net::ERR_FAILED")
            else None
        ),
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: None if request.url.startswith(server.address) else problems.append(request.url))
    context.add_cookies([{"name": "harken", "value": server.session, "url": server.address}])
    yield page
    context.close()
    assert not problems


def _project(server: Server, kind: str, num_tasks: int, num_completions: int, **task: object) -> str:
    lines = [
        TaskLine.model_validate(
            {
                "prompt": f"Question {number}? {TEXTS[number % len(TEXTS)]}",
                "completions": [
                    f"{TEXTS[(number + place) % len(TEXTS)]}\n{number}/{place}" for place in range(num_completions)
                ],
            }
        )
        for number in range(num_tasks)
    ]
    with FeedbackStore.open(server.store) as store:
        projects = Projects(store.database)
        config = ProjectConfig.model_validate({"task": {"kind": kind, **task}})
        project = projects.make(f"{kind} {len(projects.all())}", config, guideline="Be *fair*.")
        projects.add_tasks(project.id, lines, SOURCE)
    return project.id


def _shown(page: Page) -> list[str]:
    """Texts of the completions as they stand on the page, from first to last place."""
    by_place: dict[int, str] = {}
    for element in page.query_selector_all(".completion"):
        place = int(element.get_attribute("data-place") or 1)
        raw = element.query_selector(".raw")
        assert raw is not None
        by_place[place] = raw.text_content() or ""
    return [by_place[place] for place in sorted(by_place)]


def _as_shown(text: str) -> str:
    """A text as its raw form stands on the page: what cannot be seen as its code."""
    return text.replace("\u200b", "U+200B").replace("\u202e", "U+202E").replace("\u202c", "U+202C")


def _exported(server: Server, project: str, folder: Path) -> tuple[dict[str, str], list[Judgment]]:
    """Texts by id, and the judgments of one project, from an export."""
    with FeedbackStore.open(server.store) as store:
        store.export(folder)
    records = read_harken(folder)
    texts = {one.id: one.message.content for one in records.completions}
    found = [one for one in records.judgments if one.assignment is not None and one.assignment.project == project]
    return texts, found


def _start(page: Page, server: Server, project: str) -> None:
    page.goto(f"{server.address}/projects/{project}")
    page.click("button.primary")
    page.wait_for_url("**/tasks/*")


def _sent(page: Page, before: str) -> None:
    page.wait_for_url(lambda url: url != before)


@pytest.mark.parametrize(
    ("strengths", "num_tasks"),
    [(True, 24), (False, 6), pytest.param(True, 500, marks=pytest.mark.slow)],
)
def test_comparisons(page: Page, server: Server, tmp_path: Path, strengths: bool, num_tasks: int) -> None:
    project = _project(server, "comparison", num_tasks, 2, strengths=strengths)
    _start(page, server, project)
    draw = random.Random(num_tasks)
    clicked: list[tuple[list[str], str, str]] = []
    for number in range(num_tasks):
        shown = _shown(page)
        inputs = page.query_selector_all("input[name=choice]")
        index = draw.randrange(len(inputs))
        choice = inputs[index].get_attribute("value") or ""
        action = ("mouse", "keys", "button")[number % 3]
        before = page.url
        if action == "mouse":
            inputs[index].click()
            page.click("button[value=answer]")
        elif action == "keys":
            page.keyboard.press(str(index + 1))
            page.keyboard.press("Enter")
        else:
            choice = draw.choice(["both_bad", "unsure", "skip"])
            page.keyboard.press({"both_bad": "b", "unsure": "u", "skip": "s"}[choice])
        clicked.append((shown, choice, action))
        _sent(page, before)
    texts, judgments = _exported(server, project, tmp_path / "export")
    assert len(judgments) == num_tasks
    first_sides = 0
    for judgment, (shown, choice, _) in zip(judgments, clicked, strict=True):
        assert [_as_shown(texts[one]) for one in judgment.shown] == shown
        answer = judgment.answer
        assert isinstance(answer, Comparison)
        side, _, strength = choice.partition("-")
        if side in ("1", "2"):
            assert answer.outcome == "win"
            assert answer.winner is not None
            assert _as_shown(texts[answer.winner]) == shown[int(side) - 1]
            assert answer.strength == (int(strength) if strength else None)
        else:
            assert (answer.outcome, answer.winner) == (choice, None)
        first_sides += texts[judgment.shown[0]].endswith("/0")
        assert judgment.timing.active_s is not None
    # Sides are drawn: one in 2 ** 22 runs of 24 fails this by chance.
    assert num_tasks < 20 or 0 < first_sides < num_tasks


def test_ratings(page: Page, server: Server, tmp_path: Path) -> None:
    axes = [{"name": "true"}, {"name": "kind", "low": 0, "high": 3}]
    project = _project(server, "rating", 8, 1, axes=axes)
    _start(page, server, project)
    draw = random.Random(1)
    clicked: list[tuple[list[str], int, int]] = []
    for number in range(8):
        values = draw.randint(1, 5), draw.randint(0, 3)
        clicked.append((_shown(page), *values))
        before = page.url
        for place, value in enumerate(values, start=1):
            if number % 2:
                page.keyboard.press(str(value))
            else:
                page.click(f"label:has(input[name=axis-{place}][value='{value}'])")
        page.keyboard.press("Control+Enter")
        _sent(page, before)
    texts, judgments = _exported(server, project, tmp_path / "export")
    for judgment, (shown, true, kind) in zip(judgments, clicked, strict=True):
        assert isinstance(judgment.answer, Rating)
        assert [_as_shown(texts[one]) for one in judgment.shown] == shown
        assert {name: axis.value for name, axis in judgment.answer.axes.items()} == {"true": true, "kind": kind}


def test_rankings(page: Page, server: Server, tmp_path: Path) -> None:
    project = _project(server, "ranking", 9, 4)
    _start(page, server, project)
    draw = random.Random(2)
    clicked: list[tuple[list[str], list[int]]] = []
    for number in range(9):
        shown = _shown(page)
        before = page.url
        if number % 3 == 0:  # digits: the ranks with ties
            ranks = [draw.randint(1, 4) for _ in shown]
            for rank in ranks:
                page.keyboard.press(str(rank))
        elif number % 3 == 1:  # buttons: the last one goes up to the first place
            for _ in range(3):
                page.click("li[data-place='4'] button[data-move='-1']")
            ranks = [2, 3, 4, 1]
        else:  # dragging: the first one goes down
            start = page.locator("li[data-place='1'] .handle").bounding_box()
            end = page.locator("li[data-place='3']").bounding_box()
            assert start is not None
            assert end is not None
            page.mouse.move(start["x"] + 5, start["y"] + 5)
            page.mouse.down()
            page.mouse.move(start["x"], end["y"] + end["height"] - 5, steps=10)
            page.mouse.up()
            page.wait_for_selector("li.ranked:not(.dragged) select:valid")
            order = [int(one.get_attribute("data-place") or 0) for one in page.query_selector_all("li.ranked")]
            ranks = [order.index(place) + 1 for place in range(1, 5)]
            assert ranks != [1, 2, 3, 4]
        clicked.append((shown, ranks))
        page.keyboard.press("Control+Enter")
        _sent(page, before)
    texts, judgments = _exported(server, project, tmp_path / "export")
    for judgment, (shown, ranks) in zip(judgments, clicked, strict=True):
        assert isinstance(judgment.answer, RankingAnswer)
        assert [_as_shown(texts[one]) for one in judgment.shown] == shown
        steps = sorted(set(ranks))
        expected = {name: steps.index(rank) + 1 for name, rank in zip(judgment.shown, ranks, strict=True)}
        assert judgment.answer.ranks == expected


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
    _start(page, server, _project(server, "comparison", 2, 2))
    shown = _shown(page)
    page.keyboard.press("3")
    page.keyboard.press("w")
    page.keyboard.type("because s b u")
    page.wait_for_selector("#draft:has-text('Draft saved')")
    page.reload()
    assert _shown(page) == shown
    assert page.input_value("#rationale") == "because s b u"
    assert page.is_checked("input[value='1-1']")


def test_an_answer_stays_on_the_page_when_the_server_does_not_answer(page: Page, server: Server) -> None:
    _start(page, server, _project(server, "comparison", 2, 2))
    page.route("**/tasks/**", lambda route: route.abort())
    page.keyboard.press("1")
    page.evaluate("document.getElementById('answer').requestSubmit()")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "still here" in page.inner_text("#trouble")
    page.unroute("**/tasks/**")
    before = page.url
    page.keyboard.press("Enter")
    _sent(page, before)
    assert page.is_visible("#receipt")


def test_the_answer_before_can_be_changed(page: Page, server: Server, tmp_path: Path) -> None:
    project = _project(server, "comparison", 2, 2)
    _start(page, server, project)
    for key in ("1", "9"):
        before = page.url
        page.keyboard.press(key)
        page.keyboard.press("Enter")
        _sent(page, before)
        if key == "1":
            page.keyboard.press("z")
            page.wait_for_selector("form[data-answered]")
            assert page.is_checked("input[value='1-3']")
    _, judgments = _exported(server, project, tmp_path / "export")
    assert len(judgments) == 2
    assert judgments[1].supersedes == judgments[0].id
    assert json.loads(judgments[1].model_dump_json())["answer"]["winner"] == judgments[0].shown[1]

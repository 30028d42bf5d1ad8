"""What a person clicks is what training gets, text for text: a simulated annotator in a real browser."""

import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from scipy.stats import binomtest

from harken.artifacts import iterate_records
from harken.records import PreferencePair
from tests.browser.robot import AXES, Preferred, act
from tests.browser.server import ROOT, TEXTS, Server, as_shown, exported, running, sent, start
from tests.cli.calling import call

# Kind, its options, completions a task, tasks: 60 in all.
MIX: list[tuple[str, dict[str, Any], int, int]] = [
    ("comparison", {}, 2, 10),
    ("comparison", {"tie": False}, 2, 4),
    ("comparison", {"strengths": False}, 2, 4),
    ("ranking", {}, 2, 2),
    ("ranking", {"ties": False}, 3, 4),
    ("ranking", {}, 4, 6),
    ("ranking", {}, 9, 3),
    ("rating", {"axes": AXES}, 1, 6),
    ("rating", {"axes": AXES, "scope": "turns"}, 1, 4),
    ("rating", {"axes": AXES, "scope": "conversation"}, 1, 3),
    ("spans", {}, 1, 6),
    ("correction", {}, 1, 4),
    ("demonstration", {}, 0, 2),
    ("critique", {}, 1, 2),
]


def _line(name: str, number: int, kind: str, num_completions: int) -> dict[str, Any]:
    """One task; two ratings share a prompt, so that they make a pair."""
    group = number // 2 if kind == "rating" else number
    said = [("user", f"{name} {group}? {TEXTS[group % len(TEXTS)]}")]
    if kind == "rating":
        said = [
            ("system", "Be kind."),
            *said,
            ("assistant", TEXTS[1]),
            ("user", "More!"),
            ("assistant", "Yes."),
            said[0],
        ]
    texts = [f"{TEXTS[(number + place) % len(TEXTS)]}\n{name} {number}/{place}" for place in range(num_completions)]
    if kind == "spans":
        texts = [f"{TEXTS[number % len(TEXTS)]} \U0001f600 then wrong{number} and {TEXTS[3]}"]
    return {"prompt": [{"role": role, "content": text} for role, text in said], "completions": texts}


def _judge_all(page: Page, server: Server, factor: int, folder: Path) -> None:
    draw = random.Random(factor)
    said = Preferred()
    first_sides: list[bool] = []
    names: list[str] = []
    for place, (kind, task, num_completions, count) in enumerate(MIX):
        name = f"{folder.name}-{place}"
        names.append(name)
        lines = [_line(name, number, kind, num_completions) for number in range(count * factor)]
        project = server.project(kind, lines, task=task)
        start(page, server, project)
        checks = []
        for number in range(count * factor):
            before = page.url
            checks.append(act(page, kind, task, number, draw, said))
            sent(page, before)
        texts, judgments = exported(server, project, folder / name)
        assert len(judgments) == count * factor
        for judgment, check in zip(judgments, checks, strict=True):
            check(judgment, texts)
        if num_completions == 2:
            first_sides += [texts[one.shown[0]].endswith("/0") for one in judgments]
    # Sides are drawn evenly: of 20 pairs, or 340, about half have their first one first. False alarm: 1 in 100,000.
    assert binomtest(sum(first_sides), len(first_sides)).pvalue > 1e-5
    _check_preferences(folder / names[-1], names, said)


def _check_preferences(export: Path, names: list[str], said: Preferred) -> None:
    """What `harken preferences` makes of an export is what was clicked: no pair more, none less."""
    out = export.parent / "pairs.jsonl"
    ended = call("preferences", export, "--out", out, "--set", "heldout_fraction=0", "--set", "axis=honest")
    assert ended.code == 0, ended.err
    found: set[tuple[str, str, int]] = set()
    rated: set[tuple[str, str]] = set()
    for pair in iterate_records(out, PreferencePair):
        if not any(message.content.startswith(tuple(f"{name} " for name in names)) for message in pair.prompt.messages):
            continue
        chosen, rejected = as_shown(pair.chosen.content), as_shown(pair.rejected.content)
        if pair.difference is None:
            assert (chosen, rejected, pair.strength) not in found
            found.add((chosen, rejected, pair.strength))
        else:
            assert pair.difference == said.ratings[chosen] - said.ratings[rejected]
            rated.add((chosen, rejected))
    assert not found ^ said.pairs
    assert rated == _rated_pairs(said.ratings)


def _rated_pairs(ratings: dict[str, int]) -> set[tuple[str, str]]:
    by_group: dict[tuple[str, int], list[str]] = {}
    for text in ratings:
        name, number = text.rpartition("\n")[2].split("/")[0].split(" ")
        by_group.setdefault((name, int(number) // 2), []).append(text)
    pairs = [sorted(group, key=lambda text: -ratings[text]) for group in by_group.values() if len(group) == 2]
    return {(one, other) for one, other in pairs if ratings[one] > ratings[other]}


@pytest.mark.timeout(600)
def test_what_is_clicked_is_what_comes_out(page: Page, server: Server, tmp_path: Path) -> None:
    assert sum(count for *_, count in MIX) == 60
    _judge_all(page, server, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_tasks_in_the_app_of_an_installed_wheel(window: Callable[..., Page], tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path / "wheel"), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    (tmp_path / "ui").mkdir()
    with running(tmp_path / "ui", tmp_path / "installed") as server:
        _judge_all(window(server, server.session), server, 17, tmp_path)

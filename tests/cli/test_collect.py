"""Feedback commands: import, count, measure, export."""

import json
from pathlib import Path

import pytest

from harken.artifacts import write_records
from harken.feedback.source import ImportSource
from harken.feedback.store import FeedbackStore
from tests.cli.calling import call, write_ratings
from tests.preferences.crowd import comparison, completion, prompt


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A store with 40 texts, rated 5 times each, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_ratings(tmp_path / "ratings")
    options = ("--store", "sqlite:///f.db")
    assert call("collect", "import", *options, "ratings").code == 0
    return options


def test_importing_again_adds_nothing(store: tuple[str, str]) -> None:
    ended = call("collect", "import", *store, "--format", "ratings", "ratings")
    assert ended.code == 0
    # 1 prompt, 40 completions and 40 * 5 judgments are there already.
    assert ended.out == "added 0 prompts, 0 completions, 0 judgments; 241 records were there already\n"
    assert "note: " in ended.err


def test_status_counts_what_was_imported(store: tuple[str, str]) -> None:
    ended = call("collect", "status", *store)
    assert ended.code == 0
    counted = {" ".join(line.split()) for line in ended.out.splitlines()}
    assert {"prompts 1", "completions 40", "judgments 200", "judgments: rating 200"} <= counted
    found = json.loads(call("collect", "status", *store, "--json").out)
    assert (found["num_completions"], found["num_judgments"], found["per_completion_min"]) == (40, 200, 5)


def test_agreement_is_high_where_raters_differ_by_one_point_at_most(store: tuple[str, str]) -> None:
    found = json.loads(call("collect", "agreement", *store, "--json").out)
    # Ratings lie within 1 of their word's, words 2 and more apart: variance within items about 2/3, between about 5.
    assert found["alpha_interval"]["value"] > 0.8
    assert found["num_items"] == 40
    shown = call("collect", "agreement", *store, "--axis", "sentiment")
    assert shown.code == 0
    assert f"{found['alpha_interval']['value']:.3f}" in shown.out
    other = call("collect", "agreement", *store, "--axis", "style")
    assert other.code == 2
    assert "no ratings on axis 'style'" in other.problem


def test_an_export_can_be_imported_into_another_store(store: tuple[str, str], tmp_path: Path) -> None:
    assert call("collect", "export", *store, "--out", "export").out == (
        "export: 1 prompts, 40 completions, 200 judgments\n"
    )
    other = ("--store", "sqlite:///other.db")
    ended = call("collect", "import", *other, "--format", "harken", "export")
    assert ended.out.startswith("added 1 prompts, 40 completions, 200 judgments")
    assert call("collect", "export", *other, "--out", "again").code == 0
    for name in ("prompts.jsonl", "completions.jsonl", "judgments.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "export" / name).read_bytes()


def test_tables_survive_a_narrow_terminal(store: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert [call("collect", name, *store).code for name in ("status", "agreement")] == [0, 0]


@pytest.fixture
def votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A store in the working folder in which 4 judges compare 30 pairs, and `export`; the third turns all around."""
    monkeypatch.chdir(tmp_path)
    prompts = [prompt(f"q{k}") for k in range(30)]
    completions = [completion(f"{side}{k}", f"{side} " * (k + 1), f"q{k}") for k in range(30) for side in "ab"]
    judgments = [
        comparison(
            f"{k}{judge}",
            (f"a{k}", f"b{k}")[:: 1 if k % 2 else -1],
            f"{'b' if judge == 'cem' else 'a'}{k}",
            judge=judge,
        )
        for k in range(30)
        for judge in ("ann", "bob", "cem", "dee")
    ]
    judgments = [one.model_copy(update={"prompt_id": f"q{one.id[:-3]}"}) for one in judgments]
    judgments.append(comparison("skip", ("a0", "b0"), None, outcome="skip").model_copy(update={"prompt_id": "q0"}))
    write_records(tmp_path / "gold.jsonl", judgments[:1], kind="judgments")
    source = ImportSource(format="test", name="test", sha256="0" * 64)
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'v.db'}") as store:
        store.add(prompts, completions, judgments, source=source)
        store.export(tmp_path / "export")
    return ("--store", "sqlite:///v.db")


def test_agreement_of_votes_shows_the_judge_who_is_reversed(votes: tuple[str, str]) -> None:
    Path("groups.json").write_text('{"ann": "x"}')
    ended = call("collect", "agreement", *votes, "--gold", "gold.jsonl", "--groups", "groups.json", "--json")
    found = json.loads(ended.out)["votes"]
    rows = {row["judge"]: row for row in found["judges"]}
    assert rows["cem"]["reliability"]["high"] < 0 < rows["ann"]["reliability"]["low"]
    assert rows["ann"]["gold"]["value"] == 1
    assert found["judgments"] == {"skip": 1, "win": 120}
    assert found["groups"]["judges_left_out"] == 4
    shown = call("collect", "agreement", *votes)
    assert shown.code == 0
    assert "shown first wins" in shown.out
    assert "cem" in shown.out


def test_preferences_resolve_votes_and_say_what_was_left_out(votes: tuple[str, str]) -> None:
    ended = call("preferences", "export", "--out", "p.jsonl", "--set", "resolve.kind=reliability")
    assert ended.code == 0
    assert "note: 1 judgments are skip" in ended.err
    pairs = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert len(pairs) == 30
    assert all(pair["chosen"]["content"].startswith("a") and len(pair["judgment_ids"]) == 4 for pair in pairs)
    assert json.loads(Path("p.jsonl.manifest.json").read_text())["info"]["pairs"] == {"made": 30}


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("preferences", "export", "--out", "p.jsonl", "--set", "resolve.kind=vote"), "resolve"),
        (("preferences", "export", "--out", "p.jsonl", "--set", "resolve.restarts=3"), "resolve.restarts"),
        (("collect", "agreement", "--store", "sqlite:///v.db", "--groups", "list.json"), "expected a JSON object"),
        (("collect", "agreement", "--store", "sqlite:///v.db", "--probes", "gold.jsonl"), "gold.jsonl:1"),
        (("collect", "agreement", "--store", "sqlite:///v.db", "--gold", "none.jsonl"), "none.jsonl"),
    ],
)
def test_mistakes_with_votes_are_one_line(votes: tuple[str, str], arguments: tuple[str, ...], fragment: str) -> None:
    Path("list.json").write_text("[]")
    ended = call(*arguments)
    assert ended.code == 2
    assert fragment in ended.problem

"""Feedback commands: import, count, measure, export."""

import json
from pathlib import Path

import pytest

from tests.cli.calling import call, write_ratings


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

"""`harken data check | convert`, foreign formats in `harken collect import | export`, and in `--data`."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harken.cli_data import Ties
from harken.datasets import read_demonstrations, read_pairs, read_prompts
from harken.errors import DataError
from harken.feedback.exchange.entry import Reading
from harken.feedback.exchange.read import open_data
from tests.cli.calling import call, write_rows

BEGIN = "\n\nHuman: hi\n\nAssistant:"
HH = [
    {"chosen": f"{BEGIN} Two atoms walk.", "rejected": f"{BEGIN} No."},
    {"chosen": f"{BEGIN} \x1b[2J\u202e", "rejected": f"{BEGIN} b"},
    {"chosen": f"{BEGIN} a", "rejected": f"{BEGIN.replace('hi', 'ho')} b"},
]
VOTES = "prompt,completion_a,completion_b,winner,judge,strength\nP,A,B,a,ann,2\nP,A,B,tie,bob,\nP,A,B,b,cid,1\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "hh.jsonl", HH)
    (tmp_path / "votes.csv").write_text(VOTES, encoding="utf-8")


def test_check_ends_with_2_and_names_the_rows_that_cannot_be_used() -> None:
    ended = call("data", "check", "hh.jsonl")
    assert ended.code == 2
    assert "cannot be used: 1 (prompts differ), row 3" in ended.out
    assert "\u27e6Two atoms walk.\u27e7" in ended.out
    assert "\x1b" not in ended.out
    found = json.loads(call("data", "check", "hh.jsonl", "--json").out)["files"][0]
    assert (found["format"], found["num_pairs"], found["refused"]["prompts differ"]["rows"]) == ("hh-rlhf", 2, [3])
    assert call("data", "check", "votes.csv").code == 0


def test_check_says_what_two_files_share() -> None:
    write_rows(Path("train.jsonl"), [{"prompt": "Why?", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    write_rows(Path("test.jsonl"), [{"prompt": " why? ", "completion": "e"}])
    assert (
        "leak: 1 prompts of test.jsonl (100.0%) are also in train.jsonl"
        in call("data", "check", "train.jsonl", "test.jsonl").out
    )


def test_check_renders_with_a_model(tiny_model_dir: Path) -> None:
    ended = call("data", "check", "votes.csv", "--model", tiny_model_dir)
    assert ended.code == 0, ended.err
    assert "tokens before" in ended.out


def test_convert_says_the_losses_first_and_writes_only_when_they_are_accepted() -> None:
    asked = ("data", "convert", "votes.csv", "--to", "trl-preference", "--out", "p.jsonl")
    ended = call(*asked)
    assert ended.code == 2
    assert "loss: ties (1) are left out" in ended.err
    assert "loss: who judged (in 3 entries) is not kept" in ended.err
    assert not Path("p.jsonl").exists()
    assert call(*asked, "--accept-loss").out == "p.jsonl: 2 rows of trl-preference\n"
    manifest = json.loads(Path("p.jsonl.manifest.json").read_text())
    assert "ties (1) are left out" in manifest["info"]["losses"]
    assert call("data", "check", "p.jsonl").code == 0
    assert "'xml'" in call("data", "convert", "votes.csv", "--to", "xml", "--out", "p").problem


@pytest.mark.parametrize("option", [("--map", "x"), ("--scale", "q=1"), ("--format", "xml"), ("--buckets", "a,b")])
def test_options_that_make_no_sense_are_refused(option: tuple[str, str]) -> None:
    ended = call("data", "check", "votes.csv", *option)
    assert ended.code == 2
    assert option[0] in ended.problem


def test_votes_go_through_a_store_and_come_out_the_same() -> None:
    store = ("--store", "sqlite:///f.db")
    assert call("collect", "import", *store, "votes.csv").out.startswith("added 1 prompts, 2 completions, 3 judgments")
    assert "added 0 prompts, 0 completions, 0 judgments" in call("collect", "import", *store, "votes.csv").out
    assert call("collect", "export", *store, "--format", "csv", "--out", "again.csv").code == 0
    first, again = ([*open_data(Reading(Path(name)))] for name in ("votes.csv", "again.csv"))
    assert first == again
    ended = call("collect", "import", *store, "hh.jsonl")
    assert "note: 1 rows were left out, the prompts of chosen and rejected differ: row 3" in ended.err
    assert "added 1 prompts, 4 completions, 2 judgments" in ended.out
    assert call("collect", "export", *store, "--format", "helpsteer", "--out", "h.jsonl").code == 2


def test_training_reads_foreign_formats_and_says_what_it_left_out() -> None:
    told: list[str] = []
    pairs = read_pairs(Path("hh.jsonl"), told.append)
    assert [pair.chosen.content for pair in pairs] == ["Two atoms walk.", "\x1b[2J\u202e"]
    assert told == ["hh.jsonl (hh-rlhf): 1 rows were left out, the prompts of chosen and rejected differ: row 3"]
    assert [item.completion.content for item in read_demonstrations(Path("votes.csv"))] == ["A", "B"]
    assert [prompt.messages[0].content for prompt in read_prompts(Path("votes.csv"))] == ["P"]
    told.clear()
    assert len(read_pairs(Path("votes.csv"), told.append)) == 2
    assert "1 entries give no pair: ties" in told[0]
    write_rows(Path("typo.jsonl"), [{"prompt": "a", "chosen": "b", "rejected": "c", "strenght": 2}])
    with pytest.raises(DataError, match="unknown key"):
        read_pairs(Path("typo.jsonl"))


def test_data_sets_of_the_hub_are_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **options: Any) -> list[dict[str, Any]]:
        assert (name, options) == ("owner/name", {"split": "test", "streaming": True})
        return [{"prompt": "a", "chosen": "b", "rejected": "c"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))  # pyright: ignore[reportArgumentType]
    ended = call("data", "check", "hub:owner/name#test", "--json")
    assert json.loads(ended.out)["files"][0]["num_pairs"] == 1
    monkeypatch.setitem(sys.modules, "datasets", None)  # pyright: ignore[reportArgumentType]
    ended = call("data", "check", "hub:owner/name")
    assert ended.code == 2
    assert "pip install 'harken[hub]'" in ended.problem


def test_ways_with_ties_are_those_of_the_writer() -> None:
    assert [way.value for way in Ties] == ["drop", "both-ways"]

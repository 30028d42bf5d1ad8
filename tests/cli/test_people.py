"""Commands for people's rights, from import with redaction to erasure and datasheet."""

import json
from pathlib import Path

import pytest

from tests.cli.calling import call, write_rows

STORE = ("--store", "sqlite:///f.db")
ANN = "ann-0123456789"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two judgments, made by an import with redaction, in the working folder."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    message = {"role": "user", "content": "I am ann@example.org"}
    write_rows(source / "prompts.jsonl", [{"id": "q", "messages": [message]}])
    completions = [
        {"id": name, "prompt_id": "q", "message": {"role": "assistant", "content": f"text {name}"}} for name in "ab"
    ]
    write_rows(source / "completions.jsonl", completions)
    judgments = [
        {
            "id": f"j-{who}",
            "judge": {"id": who, "kind": "person"},
            "prompt_id": "q",
            "shown": ["a", "b"],
            "answer": {"type": "comparison", "outcome": "win", "winner": "a"},
            "rationale": "call (201) 555-0123",
        }
        for who in (ANN, "bob-0123456789")
    ]
    write_rows(source / "judgments.jsonl", judgments)
    ended = call("collect", "import", *STORE, "--format", "harken", "--redact", "--license", "CC0-1.0", "source")
    assert ended.code == 0, ended.err
    assert "note: personal data redacted in 3 texts: 1 email, 2 phone" in ended.err
    return tmp_path


def test_a_redacted_import_holds_marks(folder: Path) -> None:
    assert call("collect", "export", *STORE, "--out", "out").code == 0
    whole = "".join(path.read_text() for path in (folder / "out").iterdir())
    assert "[EMAIL]" in whole
    assert "call [PHONE]" in whole
    assert "ann@example.org" not in whole
    assert "license: CC0-1.0" in whole


def test_a_file_in_another_format_is_named_and_searched(folder: Path) -> None:
    assert call("collect", "export", *STORE, "--format", "csv", "--out", "votes.csv", "--accept-loss").code == 0
    assert "digest" in call("collect", "verify-audit", *STORE, "--entries").out
    ended = call("collect", "erase-person", *STORE, "--person", ANN, "--yes")
    assert ended.code == 1
    whole = " ".join(ended.out.split())
    assert f"make anew: csv: {folder / 'votes.csv'}" in whole
    assert f"the id still stands in these files (in a text, perhaps): {folder / 'votes.csv'}" in whole
    assert call("collect", "export", *STORE, "--format", "csv", "--out", "votes.csv", "--accept-loss").code == 0
    assert call("collect", "erase-person", *STORE, "--person", ANN, "--yes").code == 0


def test_an_unknown_region_is_refused() -> None:
    ended = call("collect", "import", *STORE, "--format", "harken", "--redact", "--regions", "XX", "source")
    assert ended.code == 2
    assert "no country 'XX'" in ended.problem


def test_a_shared_export_says_what_it_left_out(folder: Path) -> None:
    ended = call("collect", "export", *STORE, "--out", "out", "--scope", "public")
    assert ended.code == 0
    assert "2 texts by judges left out; personal data found and redacted: none" in ended.out
    assert ANN not in (folder / "out" / "judgments.jsonl").read_text()
    ended = call("collect", "export", *STORE, "--out", "out", "--include-text")
    assert ended.code == 2
    assert "give --scope too" in ended.problem


def test_erasing_is_announced_first_and_leaves_nothing(folder: Path) -> None:
    call("collect", "export", *STORE, "--out", "out")
    ended = call("collect", "erase-person", *STORE, "--person", ANN)
    assert ended.code == 0
    assert "would be erased (nothing was changed; --yes does it):" in ended.out
    assert "1 rows of judgments" in ended.out
    assert "1 judgments in" in ended.out
    ended = call("collect", "erase-person", *STORE, "--person", ANN, "--yes", "--json")
    found = json.loads(ended.out)
    assert (found["done"], found["is_scanned"], found["still_found_in"]) == (True, True, [])
    paths = [*(folder / "out").iterdir(), *folder.glob("f.db*")]
    assert not [path for path in paths if ANN.encode() in path.read_bytes()]
    again = call("collect", "import", *STORE, "--format", "harken", "--redact", "--license", "CC0-1.0", "source")
    assert "note: 1 judgments are by people who were erased from this store; left out" in again.err
    assert call("collect", "erase-person", *STORE, "--person", "eve").code == 2


def test_withdrawing_copying_and_the_log(folder: Path) -> None:
    (folder / "consent.txt").write_text("You may stop at any time.")
    assert call("collect", "consent", *STORE, "--version", "1", "consent.txt").code == 0
    ended = call("collect", "consent", *STORE, "--version", "1", "source/prompts.jsonl")
    assert ended.code == 2
    write_rows(folder / "people.jsonl", [{"person": ANN, "values": {"age": "30-39"}}])
    assert call("collect", "demographics", *STORE, "people.jsonl").out == "recorded for 1 people\n"
    assert call("collect", "self-export", *STORE, "--person", ANN, "--out", "ann.json").code == 0
    own = json.loads((folder / "ann.json").read_text())
    assert {name: len(rows) for name, rows in own.items()} == {"judgments": 1, "demographics": 1}
    ended = call("collect", "withdraw", *STORE, "--person", ANN, "--purpose", "demographics")
    assert ended.out == "1 attributes deleted\n"
    assert call("collect", "withdraw", *STORE, "--person", ANN).out == "1 judgments out of further exports\n"
    assert "key-2" in call("collect", "rotate-key", *STORE).out
    ended = call("collect", "retain", *STORE, "--keep", "rafts=3")
    assert ended.code == 2
    assert call("collect", "retain", *STORE, "--keep", "drafts").code == 2
    found = json.loads(call("collect", "verify-audit", *STORE, "--json", "--entries").out)
    actions = [entry["action"] for entry in found["entries"]]
    assert actions == ["import", "consent_text", "demographics", "self_export", "withdraw", "withdraw", "keys"]
    assert call("collect", "verify-audit", *STORE, "--head", found["head"]).code == 0
    assert call("collect", "verify-audit", *STORE, "--head", "0" * 64).code == 2


def test_a_datasheet_names_its_gaps(folder: Path) -> None:
    call("collect", "export", *STORE, "--out", "out")
    (folder / "about.toml").write_text('title = "Mine"\nrecruitment = "by mail"\n')
    ended = call("report", "out", "--datasheet", *STORE, "--about", "about.toml", "--out", "sheet")
    assert ended.code == 0, ended.err
    assert "gap: Not told: how they were paid." in ended.err
    assert "by mail" in (folder / "sheet" / "datasheet.html").read_text()
    assert json.loads((folder / "sheet" / "croissant.json").read_text())["license"] == ["CC0-1.0"]
    (folder / "about.toml").write_text('titel = "Mine"\n')
    ended = call("report", "out", "--datasheet", *STORE, "--about", "about.toml")
    assert ended.code == 2
    assert "did you mean 'title'" in ended.problem
    assert call("report", "out", "--about", "about.toml").code == 2

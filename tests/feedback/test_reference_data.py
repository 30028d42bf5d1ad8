"""Every number of the real data's README that is not in another test, counted from the files (docs/quality.md)."""

import csv
import gzip
import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harken.feedback.exchange.entry import Entry, Reading
from harken.feedback.exchange.hh_rlhf import read as read_hh
from harken.feedback.exchange.read import open_data
from harken.feedback.exchange.rows import read_rows

LINES = {
    "llmfao/pairs-crowd.jsonl": 2139,
    "llmfao/prompts.jsonl": 19,
    "llmfao/models.jsonl": 70,
    "oasst/en_100_tree.jsonl": 100,
    "mt-bench/question.jsonl": 80,
    "mt-bench/judge_prompts.jsonl": 8,
    "ifeval/ifeval-100.jsonl": 100,
    "gsm8k/train-1000.jsonl": 1000,
    "self-instruct/seed_tasks.jsonl": 175,
    "self-instruct/user_oriented_instructions.jsonl": 252,
    "sentences/yelp.json": 1001,  # and an empty row at the end
    "sentences/amazon.json": 1001,
    "xstest/safe-prompts.csv": 250,
    "dawid-skene-1979/anesthesia.csv": 315,
    "llmfao/crowd-comparisons.csv": 8931,
}


@pytest.mark.parametrize("name", LINES)
def test_each_file_has_its_rows(name: str, realdata: Path) -> None:
    rows = [row for _, row in read_rows(realdata / name)]
    assert all(isinstance(row, dict) for row in rows)
    assert len(rows) == LINES[name]
    if name.startswith("sentences"):
        assert (rows[-1]["text"], rows[-1].get("class")) == ("", None)  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]


def test_hh_rlhf_has_700_dialogues_of_one_turn(realdata: Path) -> None:
    # Counted in the transcripts themselves, and again in what the reader makes of them.
    with gzip.open(realdata / "hh-rlhf" / "helpful-base.test.jsonl.gz", "rt") as file:
        rows: list[dict[str, str]] = [json.loads(line) for line in file]
    single = [row for row in rows if row["chosen"].count("\n\nHuman:") == 1]
    assert (len(rows), len(single)) == (2354, 700)
    assert sum(row["chosen"] == row["rejected"] for row in rows) == 2

    def numbered() -> Iterator[tuple[int, Any]]:
        yield from enumerate(single, start=1)

    read = [item for item in read_hh(numbered()) if isinstance(item, Entry)]
    assert all(len(entry.prompt.messages) == 1 for entry in read)


def test_open_assistant_has_1022_pairs_of_416_prompts(realdata: Path) -> None:
    rows = [row for _, row in read_rows(realdata / "oasst" / "oasst_en_val_dialogue.json")]
    assert len(rows) == 1022
    found = list(open_data(Reading(realdata / "oasst" / "oasst_en_val_dialogue.json")))
    assert len({item.prompt.id for item in found if isinstance(item, Entry)}) == 416


def test_the_crowd_votes_one_to_five_times_a_pair(realdata: Path) -> None:
    with (realdata / "llmfao" / "crowd-comparisons.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    votes = Counter(row["id"] for row in rows)
    assert (len(votes), min(votes.values()), max(votes.values())) == (2139, 1, 5)
    assert len({row["worker"] for row in rows}) == 124


def test_the_anesthesia_table_has_45_patients_and_5_observers(realdata: Path) -> None:
    with (realdata / "dawid-skene-1979" / "anesthesia.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len({row["patient"] for row in rows}), len({row["observer"] for row in rows})) == (45, 5)


def test_questions_have_two_turns_and_word_problems_an_answer(realdata: Path) -> None:
    questions = [row for _, row in read_rows(realdata / "mt-bench" / "question.jsonl")]
    assert {len(row["turns"]) for row in questions if isinstance(row, dict)} == {2}
    problems = [row for _, row in read_rows(realdata / "gsm8k" / "train-1000.jsonl")]
    assert sum("\n#### " in row["answer"] for row in problems if isinstance(row, dict)) == 1000


def test_the_tiny_model_is_what_the_readme_says(realdata: Path) -> None:
    """The header of llama2.c: width, inner width, layers, heads, key-value heads, tokens (above 0: tied), positions."""
    raw = (realdata / "stories260K" / "stories260K.bin").read_bytes()
    width, inner, layers, heads, kv_heads, tokens, positions = struct.unpack("7i", raw[:28])
    assert (heads, kv_heads, tokens) == (8, 4, 512)
    size = width // heads
    of_layer = 2 * width + 2 * width * width + 2 * width * kv_heads * size + 3 * width * inner
    parameters = tokens * width + layers * of_layer + width
    assert round(parameters / 1e6, 2) == 0.26
    # The rest of the file are the angles of the positions, two tables, in fp32 like the weights.
    assert len(raw) == 28 + 4 * (parameters + positions * size)
    assert round((realdata / "tinyshakespeare" / "input.txt").stat().st_size / 1e6, 1) == 1.1

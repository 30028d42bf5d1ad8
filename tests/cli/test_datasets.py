"""Data files: rows and records, and how rows without a split get one."""

from pathlib import Path

import pytest

from harken.artifacts import write_records
from harken.datasets import read_demonstrations, read_pairs, read_prompts, read_scored
from harken.errors import DataError
from harken.records import (
    Completion,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    RatedCompletion,
    ScoredDemonstration,
)
from tests.cli.calling import write_rows


def user(text: str) -> Message:
    return Message(role="user", content=text)


def test_a_text_and_a_list_with_one_message_by_the_user_are_the_same_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}]
    first, second = read_prompts(write_rows(tmp_path / "p.jsonl", rows))
    assert first.id == second.id
    assert first.messages == second.messages == (user("a"),)
    assert first.source == "p.jsonl:1"


def test_lines_of_a_text_file_are_prompts_as_they_stand(tmp_path: Path) -> None:
    # A byte order mark and "\r" belong to the file, not to the text; U+2028 is no end of a line.
    (tmp_path / "p.txt").write_bytes("\ufeff  a\r\nb\u2028c".encode())
    texts = [prompt.messages[0].content for prompt in read_prompts(tmp_path / "p.txt")]
    assert texts == ["  a", "b\u2028c"]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=(user("a"),), tags=("t",))
    answer = Message(role="assistant", content="b")
    demonstration = Demonstration(id="d", prompt=prompt, completion=answer, split="heldout")
    pair = PreferencePair(id="q", prompt=prompt, chosen=answer, rejected=user("c"), soft_label=0.7, split="heldout")
    write_records(tmp_path / "p.jsonl", [prompt], kind="prompts")
    write_records(tmp_path / "d.jsonl", [demonstration], kind="demonstrations")
    write_records(tmp_path / "q.jsonl", [pair], kind="pairs")
    assert read_prompts(tmp_path / "p.jsonl") == [prompt]
    assert read_demonstrations(tmp_path / "d.jsonl") == [demonstration]
    assert read_pairs(tmp_path / "q.jsonl") == [pair]


def test_pairs_keep_strength_and_a_rejected_text_may_be_empty(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "", "strength": 3, "split": "train"}
    (pair,) = read_pairs(write_rows(tmp_path / "q.jsonl", [row]))
    assert (pair.strength, pair.split, pair.rejected.content, pair.soft_label) == (3, "train", "", 1.0)


def test_scored_completions_come_as_rows_records_ratings_and_pairs(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=(user("a"),))
    answer, other = (Message(role="assistant", content=text) for text in "bc")
    record = ScoredDemonstration(id="d", prompt=prompt, completion=answer, score=0.25, split="heldout")
    completion = Completion(id="c", prompt_id="p", message=answer)
    rated = RatedCompletion(
        prompt=prompt, completion=completion, mean=-1.5, std=0.5, ratings=(-1.0, -2.0), split="heldout"
    )
    pair = PreferencePair(id="q", prompt=prompt, chosen=answer, rejected=other, split="heldout")
    rows = [
        {"prompt": "a", "completion": "b", "score": 3, "split": "train"},
        {"prompt": "a", "chosen": "b", "rejected": ""},
    ]
    records = [item.model_dump(mode="json", exclude_none=True) for item in (record, rated, pair)]
    found = read_scored(write_rows(tmp_path / "s.jsonl", [*rows, *records]))
    assert [(item.completion.content, item.score) for item in found] == [
        *(("b", 3.0), ("b", 1.0), ("", -1.0)),
        *(("b", 0.25), ("b", -1.5), ("b", 1.0), ("c", -1.0)),
    ]
    assert found[3] == record
    assert [item.split for item in found[3:]] == ["heldout"] * 4
    assert {item.prompt.messages for item in found} == {(user("a"),)}


def test_one_id_for_two_prompts_is_refused(tmp_path: Path) -> None:
    rows = [{"id": "x", "messages": [{"role": "user", "content": text}]} for text in ("a", "a", "b")]
    with pytest.raises(DataError, match=r"p\.jsonl:3: prompt id 'x' already stands for another prompt"):
        read_prompts(write_rows(tmp_path / "p.jsonl", rows))


def test_about_a_tenth_is_held_out_and_a_prompt_is_never_on_both_sides(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"prompt {number}", "chosen": f"good {copy}", "rejected": "bad"}
        for number in range(2000)
        for copy in range(2)
    ]
    pairs = read_pairs(write_rows(tmp_path / "q.jsonl", rows))
    sides = {split: {pair.prompt.id for pair in pairs if pair.split == split} for split in ("train", "heldout")}
    assert not sides["train"] & sides["heldout"]
    # 2,000 prompts at 0.1: 200 expected, standard deviation 13.4. The hash is fixed, so this cannot fail by chance.
    assert 146 <= len(sides["heldout"]) <= 254


def test_rows_that_are_added_never_move_others(tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {number}", "completion": "b"} for number in range(300)]
    some = read_demonstrations(write_rows(tmp_path / "some.jsonl", rows[:100]))
    more = read_demonstrations(write_rows(tmp_path / "more.jsonl", rows[::-1]))
    split_of = {item.id: item.split for item in more}
    assert [split_of[item.id] for item in some] == [item.split for item in some]


def test_rows_with_one_prompt_are_split_by_their_completions(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": f"good {number}", "rejected": "bad"} for number in range(500)]
    pairs = read_pairs(write_rows(tmp_path / "q.jsonl", rows))
    heldout = sum(pair.split == "heldout" for pair in pairs)
    assert 25 <= heldout <= 75  # 50 expected, standard deviation 6.7; fixed by the hash


def test_something_to_train_on_is_always_left(tmp_path: Path) -> None:
    for number in range(50):
        row = {"prompt": f"prompt {number}", "completion": "b"}
        (only,) = read_demonstrations(write_rows(tmp_path / "d.jsonl", [row]))
        assert only.split == "train"


def test_a_split_in_the_file_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": str(number), "completion": "b", "split": "heldout"} for number in range(20)]
    rows[0]["split"] = "train"
    items = read_demonstrations(write_rows(tmp_path / "d.jsonl", rows))
    assert [item.split for item in items] == ["train"] + ["heldout"] * 19

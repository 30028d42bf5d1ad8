"""Well-known collections in and out: LLMFAO's votes, PRISM's conversations, and lists of questions and tasks."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harken.errors import DataError, UsageError
from harken.feedback.exchange import prism
from harken.feedback.exchange.check import check
from harken.feedback.exchange.entry import Entry, Reading, make_completion, make_judgment, make_prompt, message
from harken.feedback.exchange.read import open_data
from harken.feedback.exchange.write import Style, plan, write
from harken.records import Comparison, Judge, RatedAxis, Rating
from tests.cli.calling import call


def read(path: Path) -> list[Entry]:
    """Return the entries of a file, all of which must be usable."""
    found = list(open_data(Reading(path)))
    entries = [item for item in found if isinstance(item, Entry)]
    assert len(entries) == len(found)
    return entries


def test_real_crowd_votes_come_back_the_same_from_the_layout_they_came_in(realdata: Path, tmp_path: Path) -> None:
    votes = read(realdata / "llmfao")
    assert plan(votes, "llmfao", Style()).losses == []
    write(votes, tmp_path / "crowd-comparisons.csv", "llmfao", Style(), {})
    assert read(tmp_path) == votes
    with (
        (tmp_path / "crowd-comparisons.csv").open(newline="") as ours,
        (realdata / "llmfao" / "crowd-comparisons.csv").open(newline="") as theirs,
    ):
        own, real = list(csv.DictReader(ours)), list(csv.DictReader(theirs))
    assert own[0].keys() == real[0].keys()
    same = ("worker", "winner", "left", "right")
    assert [[row[key] for key in same] for row in own] == [[row[key] for key in same] for row in real]
    # Numbers of models and pairs are ours; that they stand for the same is what counts.
    for key in ("model_x", "model_y", "prompt"):
        assert len({(one[key], other[key]) for one, other in zip(own, real, strict=True)}) == len(
            {row[key] for row in own}
        )
    line = json.loads((tmp_path / "pairs-crowd.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {"id", "prompt", "text", "model_x", "result_x", "model_y", "result_y"} == line.keys()


def test_the_texts_of_another_crowd_are_not_overwritten(tmp_path: Path) -> None:
    prompt = make_prompt([message("user", "P")])
    both = [make_completion(prompt, text) for text in "AB"]
    judge = Judge(id="58", kind="person")
    entry = Entry(1, prompt, tuple(both), (make_judgment(1, prompt, both, Comparison(outcome="tie"), judge=judge),))
    write([entry], tmp_path / "one.csv", "llmfao", Style(), {})
    write([entry], tmp_path / "one.csv", "llmfao", Style(), {})
    # A judge whose name is a number is not taken for one of LLMFAO's workers.
    assert [item.judgments[0].judge.id for item in read(tmp_path / "one.csv")] == ["58"]
    with pytest.raises(DataError, match="is there already"):
        write([entry], tmp_path / "other.csv", "llmfao", Style(), {})
    with pytest.raises(UsageError, match=r"llmfao is written as \.csv or \.parquet"):
        write([entry], tmp_path / "other.jsonl", "llmfao", Style(), {})


def test_the_texts_without_votes_are_refused_with_what_to_name(realdata: Path) -> None:
    found = check(open_data(Reading(realdata / "llmfao" / "pairs-crowd.jsonl")))
    assert found.num_entries == 0
    assert "name crowd-comparisons.csv or the folder" in found.refused["incomplete"].example
    assert len(read(realdata / "llmfao" / "prompts.jsonl")) == 19


def reply(turn: int, text: str, score: int | None, chosen: bool, place: int) -> dict[str, Any]:
    row = {"turn": turn, "role": "model", "content": text, "model_name": f"m{text}", "score": score}
    return row | {"if_chosen": chosen, "within_turn_id": place}


def test_prism_conversations_come_back_with_scores_beside_the_choice(tmp_path: Path) -> None:
    history = [
        {"turn": 0, "role": "user", "content": "P0"},
        reply(0, "A", 20, False, 0),
        reply(0, "B", 70, True, 1),
        reply(0, "C", None, False, 2),
        {"turn": 1, "role": "user", "content": "P1"},
        reply(1, "D", 90, True, 0),
        reply(1, "E", 80, False, 1),
    ]
    rows = [{"conversation_id": name, "user_id": name, "conversation_history": history} for name in ("u1", "u2")]
    (tmp_path / "in.json").write_text(json.dumps(rows), encoding="utf-8")
    entries = read(tmp_path / "in.json")
    assert plan(entries, "prism", Style()).losses == []
    write(entries, tmp_path / "out.json", "prism", Style(), {})
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    # One conversation for each person and prompt, the second with the chosen reply of the first as its past.
    assert [(row["user_id"], row["conversation_turns"]) for row in written] == [
        *(("u1", 1), ("u2", 1), ("u1", 2), ("u2", 2)),
    ]
    assert written[0]["conversation_history"] == history[:4]
    assert written[2]["conversation_history"][-3:] == history[4:]
    said = [(row["role"], row["content"]) for row in written[2]["conversation_history"]]
    assert said == [("user", "P0"), ("model", "B"), ("user", "P1"), ("model", "D"), ("model", "E")]

    def judged(found: list[Entry]) -> Counter[str]:
        return Counter(
            repr((entry.prompt.messages, one.judge.id, one.shown, one.answer))
            for entry in found
            for one in entry.judgments
        )

    assert judged(read(tmp_path / "out.json")) == judged(entries)


def test_a_second_choice_or_rating_of_the_same_judge_is_another_conversation() -> None:
    prompt = make_prompt([message("user", "P")])
    both = [make_completion(prompt, text) for text in "AB"]
    judge = Judge(id="u", kind="person")
    answers = [Rating(axes={"score": RatedAxis(value=value, low=1, high=100)}) for value in (5, 6)]
    rated = [make_judgment(place, prompt, both[:1], one, judge=judge) for place, one in enumerate(answers)]
    won = [
        make_judgment(place, prompt, shown, Comparison(outcome="win", winner=both[0].id), judge=judge)
        for place, shown in enumerate((both, both[::-1]))
    ]
    first, second = prism.write(Entry(1, prompt, tuple(both), (*rated, *won)))
    replies = [[one for one in row["conversation_history"] if one["role"] == "model"] for row in (first, second)]
    assert [[one["content"] for one in own] for own in replies] == [["A", "B"], ["B", "A"]]
    assert [[one["score"] for one in own] for own in replies] == [[5, None], [None, 6]]
    assert [[one["if_chosen"] for one in own] for own in replies] == [[True, False], [False, True]]


COUNTS = {
    "gsm8k/train-1000.jsonl": (1000, 1000),
    "self-instruct/user_oriented_instructions.jsonl": (252, 252),
    "self-instruct/seed_tasks.jsonl": (175, 175),
    "mt-bench/question.jsonl": (80, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_lists_of_questions_and_tasks_are_known_by_their_keys(name: str, realdata: Path) -> None:
    data = open_data(Reading(realdata / name))
    found = check(data)
    assert data.format == "instructions"
    assert (found.num_entries, found.num_demonstrations, found.num_refused) == (*COUNTS[name], 0)
    assert call("data", "check", realdata / name).code == 0
    notes = ("of several turns the first is the prompt; the others need an answer before them (80 times)",)
    assert data.reading.noted() == (notes if name.startswith("mt-bench") else ())


def test_the_input_of_a_task_stands_below_its_instruction(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    rows = [
        {"instruction": "Translate.", "input": "Hund", "output": "dog", "text": "Below is an instruction."},
        {"instruction": "Say hello.", "input": "", "output": "hello"},
        {"instruction": "Say nothing.", "input": "", "output": " "},
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    *entries, refused = list(open_data(Reading(path)))
    asked = [item.prompt.messages[0].content for item in entries if isinstance(item, Entry)]
    assert asked == ["Translate.\n\nHund", "Say hello."]
    assert not isinstance(refused, Entry)
    assert (refused.row, refused.cause) == (3, "empty")


def test_pairs_whose_prompt_has_another_name_say_which_option_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "orca.jsonl"
    row = {"system": "Be kind.", "question": "Why?", "chosen": "Because.", "rejected": "No."}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = check(open_data(Reading(path)))
    assert "name it: --map prompt=question" in found.refused["prompts differ"].example
    found = check(open_data(Reading(path, renamed={"prompt": "question"})))
    assert (found.num_pairs, found.num_refused) == (1, 0)

"""What each format means: small files by hand, with what their readers must not get wrong, and the real data."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest

from harken.errors import DataError, UsageError
from harken.feedback.exchange.check import check
from harken.feedback.exchange.derive import pairs_of
from harken.feedback.exchange.entry import Entry, Reading, Refusal
from harken.feedback.exchange.importing import Importing
from harken.feedback.exchange.optional import write_parquet
from harken.feedback.exchange.read import open_data
from harken.feedback.store import FeedbackStore
from harken.records import Comparison, DemonstrationAnswer, Judgment, RankingAnswer, Rating, Spans


def entries_in(path: Path, rows: list[Any] | None = None, **options: Any) -> tuple[list[Entry], list[Refusal], Reading]:
    """Write rows as a JSON list, read the file, and return entries, refusals and the reading."""
    if rows is not None:
        path.write_text(json.dumps(rows), encoding="utf-8")
    data = open_data(Reading(path, **options))
    found = list(data)
    entries = [item for item in found if isinstance(item, Entry)]
    return entries, [item for item in found if isinstance(item, Refusal)], data.reading


def texts_of(entry: Entry, judgment: Judgment) -> list[str]:
    texts = {one.id: one.message.content for one in entry.completions}
    return [texts[name] for name in judgment.shown]


def winner_of(entry: Entry, judgment: Judgment) -> str:
    assert isinstance(judgment.answer, Comparison)
    return next(one.message.content for one in entry.completions if one.id == judgment.answer.winner)


def ranked(entry: Entry, judgment: Judgment) -> list[str]:
    assert isinstance(judgment.answer, RankingAnswer)
    ranks = judgment.answer.ranks
    texts = {one.id: one.message.content for one in entry.completions}
    return [texts[name] for name in sorted(ranks, key=lambda name: ranks[name])]


def test_hh_rlhf_refuses_rows_whose_prompts_differ_or_that_are_identical(tmp_path: Path) -> None:
    begin = "\n\nHuman: hi\n\nAssistant: Hello!\n\nHuman: a joke?\n\nAssistant:"
    rows = [
        {"chosen": f"{begin} Two atoms walk.", "rejected": f"{begin} No."},
        {"chosen": f"{begin} a", "rejected": f"{begin.replace('hi', 'ho')} b"},
        {"chosen": f"{begin} a", "rejected": f"{begin} a"},
        {"chosen": f"{begin} a", "rejected": begin},
    ]
    entries, refused, _ = entries_in(tmp_path / "h.json", rows)
    assert [(item.row, item.cause) for item in refused] == [(2, "prompts differ"), (3, "identical")]
    (pair,) = pairs_of(entries[0])
    assert [one.content for one in pair.prompt.messages] == ["hi", "Hello!", "a joke?"]
    assert (pair.chosen.content, pair.rejected.content) == ("Two atoms walk.", "No.")
    assert check(entries).odd["an empty completion"].rows == [4]


def test_real_hh_rlhf_has_the_known_traps(realdata: Path) -> None:
    data = open_data(Reading(realdata / "hh-rlhf" / "helpful-base.test.jsonl.gz"))
    found = check(data)
    assert data.format == "hh-rlhf"
    assert {cause: problem.count for cause, problem in found.refused.items()} == {"prompts differ": 9, "identical": 2}
    assert found.num_entries + found.num_refused == 2354
    # 1,403 of the 2,343 pairs that are used; none have the same length.
    assert found.num_longer / (found.num_longer + found.num_shorter) == pytest.approx(0.599, abs=5e-4)


def test_real_oasst_pairs_and_trees(realdata: Path) -> None:
    found = check(open_data(Reading(realdata / "oasst" / "oasst_en_val_dialogue.json")))
    assert (found.num_pairs, len(found.prompts), found.refused["identical"].count) == (1021, 416, 1)
    assert found.num_longer / 1022 == pytest.approx(0.662, abs=5e-4)
    entries, refused, _ = entries_in(realdata / "oasst" / "en_100_tree.jsonl")
    assert not refused
    ranks = [one.answer.ranks for entry in entries for one in entry.judgments if isinstance(one.answer, RankingAnswer)]
    assert sum(map(len, ranks)) == 641
    assert len(ranks) == 212


def test_real_crowd_votes_have_their_alpha(realdata: Path, tmp_path: Path) -> None:
    importing = Importing(open_data(Reading(realdata / "llmfao")))
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        added = store.add_parts(importing.parts(), source=importing.source)
        assert added.judgments == 8931
        again = Importing(open_data(Reading(realdata / "llmfao")))
        assert store.add_parts(again.parts(), source=again.source).judgments == 0
        judgments = list(store.judgments())
    votes: dict[tuple[str, ...], Counter[str]] = {}
    for one in judgments:
        assert isinstance(one.answer, Comparison)
        side = (
            one.answer.outcome if one.answer.winner is None else ["left", "right"][one.shown.index(one.answer.winner)]
        )
        votes.setdefault(one.shown, Counter())[side] += 1
    assert sum(votes.values(), Counter()) == {"left": 2911, "right": 2549, "tie": 3471}
    assert (len(votes), len({one.judge.id for one in judgments})) == (2139, 124)
    counts = [[votes_of[side] for side in ("left", "right", "tie")] for votes_of in votes.values()]
    alpha = krippendorff.alpha(value_counts=np.array(counts), level_of_measurement="nominal")
    assert alpha == pytest.approx(0.2906, abs=5e-4)


def test_a_ranking_event_tells_the_order_in_which_replies_were_shown(tmp_path: Path) -> None:
    event = {"type": "ranking", "user_id": "u9", "ranking": [1, 0], "ranked_message_ids": ["a", "b"]}
    flawed = {**event, "user_id": "u8", "not_rankable": True}
    reply = {"parent_id": "t1", "role": "assistant", "replies": []}
    tree = {
        "message_tree_id": "t1",
        "tree_state": "ready_for_export",
        "prompt": {
            "message_id": "t1",
            "role": "prompter",
            "text": "Why?",
            "events": {"ranking": [event, flawed]},
            "replies": [
                {**reply, "message_id": "a", "text": "A", "rank": 0},
                {**reply, "message_id": "b", "text": "B", "rank": 1},
            ],
        },
    }
    ((entry,), refused, _) = entries_in(tmp_path / "t.json", [tree])
    assert not refused
    consensus, by_person, not_rankable = entry.judgments
    assert (consensus.judge.kind, by_person.judge.id) == ("import", "u9")
    assert ranked(entry, consensus) == ranked(entry, by_person) == ["A", "B"]
    assert texts_of(entry, by_person) == ["B", "A"]  # b was shown first, a won
    assert isinstance(not_rankable.answer, Comparison)
    assert not_rankable.answer.outcome == "both_bad"


CONFIG = """<View><Text name="q" value="$prompt"/>
<Pairwise name="comparison" toName="second,first"/><Text name="first" value="$answer1"/>
<Text name="second" value="$answer2"/><Rating name="quality" toName="q" maxRating="7"/></View>"""


def annotation(*results: Any, **fields: Any) -> dict[str, Any]:
    return {"id": 1, "completed_by": 10, "was_cancelled": False, "result": list(results), **fields}


def task(*annotations: Any, **data: Any) -> dict[str, Any]:
    return {"id": 17, "data": {"prompt": "P", **data}, "annotations": list(annotations)}


PAIRWISE = {"type": "pairwise", "from_name": "comparison", "to_name": "c", "value": {"selected": "left"}}


def test_left_is_the_first_name_of_the_labeling_config(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    rows = [
        task(annotation(PAIRWISE), annotation(id=2), annotation(id=3, was_cancelled=True), answer1="A", answer2="B")
    ]
    entries, refused, _ = entries_in(path, rows)
    assert not entries
    assert "labeling config" in refused[0].message
    (tmp_path / "l.json.config.xml").write_text(CONFIG)
    ((entry,), refused, reading) = entries_in(path)
    assert not refused
    won, nothing, cancelled = entry.judgments
    assert texts_of(entry, won) == ["B", "A"]
    assert winner_of(entry, won) == "B"
    assert [one.answer.outcome for one in (nothing, cancelled) if isinstance(one.answer, Comparison)] == [
        "skip",
        "skip",
    ]
    assert any("never as a tie" in note for note in reading.noted())


def test_the_minimal_export_of_label_studio_is_refused_with_the_reason(tmp_path: Path) -> None:
    row = {"prompt": "P", "answer1": "A", "answer2": "B", "id": 1, "annotator": 3, "annotation_id": 9, "lead_time": 2.5}
    with pytest.raises(DataError, match=r"does not say which side of a pair was chosen"):
        entries_in(tmp_path / "m.json", [row])


ITEMS = [{"id": f"r{number}", "title": "", "body": f"text {number}"} for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("value", "buckets", "expected"),
    [
        (["r3", "r1", "r2"], (), [["text 3", "text 1", "text 2"]]),
        ({"rank": ["r3", "r1", "r2"]}, (), [["text 3", "text 1", "text 2"]]),
        ({"_": ["r1"], "good": ["r3", "r2"]}, (), [["text 3", "text 2"]]),
        ({"_": ["r1"], "good": ["r3", "r2"]}, ("good", "_"), [["text 3", "text 2", "text 1"]]),
    ],
)
def test_the_three_shapes_of_a_ranker(
    value: Any, buckets: tuple[str, ...], expected: list[list[str]], tmp_path: Path
) -> None:
    result = {"type": "ranker", "from_name": "rank", "to_name": "answers", "value": {"ranker": value}}
    ((entry,), refused, _) = entries_in(tmp_path / "r.json", [task(annotation(result), items=ITEMS)], buckets=buckets)
    assert not refused
    assert [ranked(entry, one) for one in entry.judgments] == expected


def test_spans_count_utf16_units_in_label_studio_and_code_points_here(tmp_path: Path) -> None:
    value = {"start": 3, "end": 6, "text": "bad", "labels": ["wrong"]}
    result = {"type": "labels", "from_name": "errors", "to_name": "answer1", "value": value}
    moved = {**result, "value": {**value, "start": 4, "end": 7}}
    rows = [task(annotation(result), answer1="\U0001f600 bad"), task(annotation(moved), answer1="\U0001f600 bad")]
    ((entry,), (refused,), _) = entries_in(tmp_path / "s.json", rows)
    answer = entry.judgments[0].answer
    assert isinstance(answer, Spans)
    assert (answer.spans[0].start, answer.spans[0].end) == (2, 5)
    assert "does not hold the text" in refused.message


def test_argilla_nested_and_flattened_say_the_same(tmp_path: Path) -> None:
    fields = {"prompt": "P", "response-1": "A", "response-2": "B"}
    values = [{"value": "response-1", "user_id": "u1"}, {"value": "response-2", "user_id": "u2"}]
    nested = {"id": "e", "fields": fields, "responses": {"preference": values}, "suggestions": {}}
    flat = {
        **{"id": "e", **fields, "preference.responses": ["response-1", "response-2", "response-1"]},
        "preference.responses.users": ["u1", "u2", "u3"],
        "preference.responses.status": ["submitted", "submitted", "draft"],
    }
    old = {"id": "e", **fields, "preference.response.0d1e0d1e-0000-0000-0000-000000000000": "response-2"}
    ((one,), _, nested_reading) = entries_in(tmp_path / "n.json", [nested])
    ((other,), _, flat_reading) = entries_in(tmp_path / "f.json", [flat])
    ((oldest,), _, _) = entries_in(tmp_path / "o.json", [old])
    assert [winner_of(one, judgment) for judgment in one.judgments] == ["A", "B"]
    assert one.judgments == other.judgments
    assert winner_of(oldest, oldest.judgments[0]) == "B"
    assert "no status" in nested_reading.noted()[0]
    assert flat_reading.noted() == ("a draft response was left out",)


@pytest.mark.parametrize("value", [["response-1", "response-2"], [{"value": "response-1", "rank": None}]])
def test_argilla_rankings_without_ranks_are_refused_not_guessed(value: Any, tmp_path: Path) -> None:
    fields = {"prompt": "P", "response-1": "A", "response-2": "B"}
    row = {"fields": fields, "responses": {"ranking": [{"value": value, "user_id": "u"}]}}
    entries, (refused,), _ = entries_in(tmp_path / "a.json", [row])
    assert not entries
    assert "the ranks are lost" in refused.message


def test_argilla_rankings_of_the_rest_api_keep_ties(tmp_path: Path) -> None:
    ranks = [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}]
    response = {"user_id": "u", "status": "submitted", "values": {"rank": {"value": ranks}}}
    row = {"fields": {"prompt": "P", "response-1": "A", "response-2": "B"}, "responses": [response]}
    ((entry,), _, _) = entries_in(tmp_path / "a.json", [row])
    assert isinstance(answer := entry.judgments[0].answer, RankingAnswer)
    assert sorted(answer.ranks.values()) == [1, 1]


def test_helpsteer_scores_below_zero_are_for_the_first_and_zero_is_a_tie(tmp_path: Path) -> None:
    people = [{"score": -3, "reasoning": "why", "feedback1": "good", "feedback2": None}, {"score": 0}, {"score": 1}]
    said = [{"role": "user", "content": "P"}]
    row = {
        "context": said,
        "response1": "A",
        "response2": "B",
        "overall_preference": -1,
        "individual_preference": people,
    }
    ((entry,), _, _) = entries_in(tmp_path / "h.json", [row])
    comparisons = [one for one in entry.judgments if isinstance(one.answer, Comparison)]
    found = [(one.answer.outcome, one.answer.strength) for one in comparisons if isinstance(one.answer, Comparison)]
    assert found == [("win", 3), ("tie", None), ("win", 1)]
    assert [winner_of(entry, comparisons[0]), winner_of(entry, comparisons[2])] == ["A", "B"]
    assert comparisons[0].rationale == "why"
    assert len({one.judge.id for one in entry.judgments}) == 3


def test_arena_reads_conversations_and_the_table_of_55000(tmp_path: Path) -> None:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "P"}, {"role": "assistant", "content": text}]

    row = {"question_id": "q", "model_a": "m", "model_b": "n", "judge": "arena_user_1", "turn": 1, "tstamp": 0.0}
    row |= {"conversation_a": said("A"), "conversation_b": said("B")}
    entries, _, _ = entries_in(tmp_path / "a.json", [row | {"winner": "model_b"}, row | {"winner": "tie (bothbad)"}])
    assert winner_of(entries[0], entries[0].judgments[0]) == "B"
    assert isinstance(answer := entries[1].judgments[0].answer, Comparison)
    assert answer.outcome == "both_bad"
    assert entries[0].judgments[0].timing.submitted_at == "1970-01-01T00:00:00.000000+00:00"
    table = tmp_path / "train.csv"
    head = "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
    table.write_text(head + '1,m,n,"[""P""]","[""A""]","[""B""]",1,0,0\n2,m,n,"[""P""]","[""A""]","[""B""]",1,1,0\n')
    ((entry,), (refused,), _) = entries_in(table)
    assert winner_of(entry, entry.judgments[0]) == "A"
    assert refused.row == 2


def test_prism_goes_on_with_the_chosen_reply(tmp_path: Path) -> None:
    def reply(turn: int, text: str, score: int, chosen: bool) -> dict[str, Any]:
        row = {"conversation_id": "c", "user_id": "u", "turn": turn, "user_prompt": f"P{turn}"}
        return {**row, "model_response": text, "model_name": "m", "score": score, "if_chosen": chosen}

    rows = [reply(0, "A", 70, True), reply(0, "B", 20, False), reply(1, "C", 90, True), reply(1, "D", 80, False)]
    entries, refused, _ = entries_in(tmp_path / "u.json", rows)
    assert not refused
    assert [one.content for one in entries[1].prompt.messages] == ["P0", "A", "P1"]
    ratings = [one.answer.axes["score"].value for one in entries[0].judgments if isinstance(one.answer, Rating)]
    assert ratings == [70, 20]
    assert winner_of(entries[1], entries[1].judgments[-1]) == "C"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, ("The sky is", " blue.", " green.")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, ("The sky is ", "blue.", "green.")),
        (
            {"chosen": [{"role": "user", "content": "S"}, {"role": "assistant", "content": "B"}]}
            | {"rejected": [{"role": "user", "content": "S"}, {"role": "assistant", "content": "G"}]},
            ("S", "B", "G"),
        ),
    ],
)
def test_trl_preferences_with_and_without_a_prompt(row: Any, expected: tuple[str, str, str], tmp_path: Path) -> None:
    ((entry,), refused, _) = entries_in(tmp_path / "t.json", [row | {"margin": 2.0}])
    assert not refused
    (pair,) = pairs_of(entry)
    assert (pair.prompt.messages[-1].content, pair.chosen.content, pair.rejected.content) == expected
    assert pair.strength == 2


def test_tables_by_mapping_and_models_by_name(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text("q,x,y,who,m1,m2,w\nP,A,B,ann,gpt,llama,llama\nP,A,B,bob,gpt,llama,neither\n")
    names = {"prompt": "q", "completion_a": "x", "completion_b": "y", "judge": "who", "winner": "w"}
    names |= {"model_a": "m1", "model_b": "m2"}
    ((entry,), (refused,), _) = entries_in(path, renamed=names)
    assert winner_of(entry, entry.judgments[0]) == "B"
    assert entry.judgments[0].judge.id == "ann"
    assert "'neither'" in refused.message
    with pytest.raises(UsageError, match="no column 'z'"):
        entries_in(path, renamed={"prompt": "z"})


def test_parquet_reads_as_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "P"}], "chosen": "A", "rejected": "B"}]
    rows[0]["chosen"] = [{"role": "assistant", "content": "A"}]
    rows[0]["rejected"] = [{"role": "assistant", "content": "B"}]
    write_parquet(tmp_path / "p.parquet", rows)
    ((entry,), _, _) = entries_in(tmp_path / "p.parquet")
    ((same,), _, _) = entries_in(tmp_path / "p.json", rows)
    assert entry == same
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a Parquet file"):
        entries_in(tmp_path / "bad.parquet")


def test_an_unknown_format_names_the_keys_and_what_to_do(tmp_path: Path) -> None:
    row = {"asked": "What is this?", "number": 3, "said": "It is a test."}
    with pytest.raises(DataError, match="no known format: its first row has asked, number, said; ") as raised:
        entries_in(tmp_path / "x.json", [row])
    assert "is asked: --map prompt=asked, and if 'said' is the answer: --map completion=said" in str(raised.value)
    ((entry,), refused, _) = entries_in(tmp_path / "x.json", renamed={"prompt": "asked", "completion": "said"})
    assert not refused
    assert entry.judgments[0].answer == DemonstrationAnswer(text="It is a test.")
    with pytest.raises(DataError, match="no column holds texts"):
        entries_in(tmp_path / "x.json", [{"patient": 1, "label": "2"}])

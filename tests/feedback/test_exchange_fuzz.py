"""Anything may stand anywhere in a stranger's row: it is read or refused, and never a mistake of ours."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harken.feedback.exchange.entry import Entry, Reading, Refusal
from harken.feedback.exchange.label_studio_config import config_path
from harken.feedback.exchange.read import Format, read_as

SAID = [{"role": "user", "content": "P"}, {"role": "assistant", "content": "A"}]
OTHER = [SAID[0], {"role": "assistant", "content": "B"}]
EVENT = {"user_id": "u", "ranking": [1, 0], "ranked_message_ids": ["a", "b"], "not_rankable": None}
REPLY = {"role": "assistant", "text": "A", "rank": 0, "replies": []}
RESULTS = [
    {"type": "pairwise", "from_name": "c", "to_name": "c", "value": {"selected": "left"}},
    {"type": "ranker", "from_name": "r", "to_name": "l", "value": {"ranker": {"r": ["x", "y"]}}},
    {"type": "rating", "from_name": "q", "to_name": "answer1", "value": {"rating": 4}},
    {
        "type": "labels",
        "to_name": "answer1",
        "value": {"start": 0, "end": 1, "labels": ["w"]},
        "meta": {"severity": ["minor"]},
    },
    {"type": "choices", "from_name": "s", "value": {"choices": ["much"]}},
    {"type": "textarea", "from_name": "answer1 correction", "to_name": "answer1", "value": {"text": ["t"]}},
]
ROWS: dict[str, tuple[Format, dict[str, Any]]] = {
    "hh": ("hh-rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
    "red team": ("hh-rlhf", {"transcript": "\n\nHuman: a\n\nAssistant: b", "rating": 2.0, "model_type": "m"}),
    "pair": ("trl", {"prompt": SAID[:1], "chosen": SAID[1:], "rejected": OTHER[1:], "margin": 2, "split": "train"}),
    "steps": ("trl", {"prompt": "P", "completions": ["a", "b"], "labels": [True, False]}),
    "unpaired": ("trl", {"prompt": "P", "completion": "A", "label": True}),
    "tree": (
        "oasst",
        {
            "message_tree_id": "t",
            "prompt": {
                "message_id": "t",
                "role": "prompter",
                "text": "P",
                "events": {"ranking": [EVENT]},
                "replies": [{**REPLY, "message_id": "a"}, {**REPLY, "message_id": "b", "rank": 1}],
            },
        },
    ),
    "thread": ("oasst", {"thread_id": "t", "thread": [{"role": "prompter", "text": "P"}, REPLY]}),
    "task": (
        "label-studio",
        {
            "data": {
                "prompt": "P",
                "answer1": "A",
                "answer2": "B",
                "items": [{"id": "x", "body": "A"}, {"id": "y", "body": "B"}],
            },
            "annotations": [{"id": 1, "completed_by": {"id": 3}, "lead_time": 2.0, "result": RESULTS}],
            "predictions": [{"model_version": "m", "result": RESULTS[:1]}],
        },
    ),
    "record": (
        "argilla",
        {
            "id": "e",
            "fields": {"prompt": "P", "response-1": "A", "response-2": "B"},
            "responses": {
                "preference": [{"value": "response-1", "user_id": "u"}],
                "rank": [{"value": [{"value": "response-1", "rank": 1}], "user_id": "u"}],
            },
            "suggestions": {"preference": {"value": "response-2", "agent": "m"}},
        },
    ),
    "flat record": (
        "argilla",
        {
            "prompt": "P",
            "response-1": "A",
            "q.responses": [4],
            "q.responses.users": ["u"],
            "q.responses.status": ["submitted"],
        },
    ),
    "arena": (
        "arena",
        {"winner": "model_a", "conversation_a": SAID, "conversation_b": OTHER, "judge": "j", "tstamp": 1.0},
    ),
    "graded": (
        "helpsteer",
        {
            "context": SAID[:1],
            "response1": "A",
            "response2": "B",
            "overall_preference": 1,
            "individual_preference": [{"score": 1, "reasoning": "r", "feedback1": "f"}],
        },
    ),
    "prism": (
        "prism",
        {
            "user_id": "u",
            "conversation_history": [
                {"role": "user", "content": "P", "turn": 0},
                {"role": "model", "content": "A", "turn": 0, "score": 3, "if_chosen": True},
                {"role": "model", "content": "B", "turn": 0, "score": 2, "if_chosen": False},
            ],
        },
    ),
    "table": (
        "csv",
        {"prompt": "P", "completion_a": "A", "completion_b": "B", "winner": "a", "strength": "2", "active_s": "1"},
    ),
    "pair record": (
        "harken",
        {
            "id": "i",
            "prompt": {"id": "p", "messages": SAID[:1]},
            "chosen": SAID[1],
            "rejected": OTHER[1],
            "split": "train",
        },
    ),
}
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), st.floats(), st.text(max_size=4), st.just([]), st.just({}),
    st.just([[1]]),
    st.just([{"a": 1}]), st.just({"a": [None]}),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a row at which another value may stand."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, item in inner for place in places(item, (*path, key)))]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_with_anything_in_it_is_read_or_refused(name: str, tmp_path: Path) -> None:
    format, row = ROWS[name]
    reading = Reading(tmp_path / "a.json", scales={"q": (1, 5)})
    config_path(reading.path).write_text(
        '<View><Pairwise name="c" toName="l,r"/><Text name="l" value="$answer1"/>'
        '<Text name="r" value="$answer2"/></View>'
    )
    assert all(isinstance(item, Entry) for item in read_as(format, [(1, row)], reading))

    @given(place=st.sampled_from(places(row)), value=ANYTHING)
    def refused_or_read(place: tuple[Any, ...], value: Any) -> None:
        other = copy.deepcopy(row)
        inner: Any = other
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        found = list(read_as(format, [(1, other)], reading))
        assert all(isinstance(item, Entry | Refusal) for item in found)

    refused_or_read()

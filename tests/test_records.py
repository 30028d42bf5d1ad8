"""Records: what they refuse, and that JSON gives back what was written."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import BaseModel, ValidationError

from harken.records import (
    Comparison,
    Completion,
    Critique,
    ErrorSpan,
    Judge,
    Judgment,
    Message,
    PreferencePair,
    Prompt,
    RankingAnswer,
    RatedAxis,
    Rating,
    ScoredCompletion,
    Spans,
    Timing,
    content_id,
)

USER = Message(role="user", content="Name a prime above 10.")
PERSON = Judge(id="p1", kind="person")
PROMPT = Prompt(id="q", messages=(USER,))


def _judgment(answer: object, shown: tuple[str, ...] = ("a", "b")) -> Judgment:
    fields = {"id": "j", "judge": PERSON, "prompt_id": "q", "shown": shown, "answer": answer}
    return Judgment.model_validate(fields)


def _pair(chosen: str, rejected: str, soft_label: float = 1.0) -> PreferencePair:
    return PreferencePair(
        id="x",
        prompt=PROMPT,
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        soft_label=soft_label,
    )


def test_content_id_is_the_start_of_the_sha256_of_canonical_json() -> None:
    # printf '["a",1]' | sha256sum
    assert content_id("a", 1) == "135f17a475a61afd"
    assert content_id({"x": 1, "y": 2}) == content_id({"y": 2, "x": 1})
    assert content_id("a", "b") != content_id("ab")


def test_records_are_frozen() -> None:
    field = "content"
    with pytest.raises(ValidationError, match="frozen"):
        setattr(USER, field, "another text")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Message.model_validate({"role": "user", "content": "x", "name": "y"})


@pytest.mark.parametrize("text", ["", "  \n"])
def test_prompt_without_text_is_refused_by_its_id(text: str) -> None:
    with pytest.raises(ValidationError, match="prompt 'q' is empty"):
        Prompt(id="q", messages=(Message(role="user", content=text),))


def test_comparison_has_a_winner_exactly_when_won() -> None:
    assert Comparison(outcome="win", winner="a").winner == "a"
    with pytest.raises(ValidationError, match="winner exactly when"):
        Comparison(outcome="tie", winner="a")
    with pytest.raises(ValidationError, match="winner exactly when"):
        Comparison(outcome="win")


def test_rating_outside_its_scale_is_refused() -> None:
    assert RatedAxis(value=-4, low=-4, high=4).value == -4
    with pytest.raises(ValidationError, match=r"5.0 lies outside its scale -4.0..4.0"):
        RatedAxis(value=5, low=-4, high=4)
    with pytest.raises(ValidationError, match="outside its scale"):
        RatedAxis(value=float("nan"), low=-4, high=4)


def test_empty_span_is_refused() -> None:
    with pytest.raises(ValidationError, match="empty or reversed"):
        ErrorSpan(completion_id="a", start=3, end=3, label="factual")


@pytest.mark.parametrize(
    "answer",
    [
        Comparison(outcome="win", winner="c"),
        RankingAnswer(ranks={"a": 1, "c": 2}),
        Spans(spans=(ErrorSpan(completion_id="c", start=0, end=1, label="x"),)),
        Critique(completion_id="c", text="x"),
    ],
)
def test_judgment_of_what_was_not_shown_is_refused(answer: BaseModel) -> None:
    with pytest.raises(ValidationError, match=r"judgment 'j' names \['c'\], which was not shown"):
        _judgment(answer)
    assert _judgment(answer, ("a", "b", "c")).shown[-1] == "c"


def test_answer_kind_is_told_apart_by_its_type_field() -> None:
    judgment = _judgment({"type": "comparison", "outcome": "win", "winner": "b", "strength": 2})
    assert isinstance(judgment.answer, Comparison)
    with pytest.raises(ValidationError, match="union_tag_invalid"):
        _judgment({"type": "vote", "winner": "b"})


def test_pair_of_identical_texts_is_refused() -> None:
    with pytest.raises(ValidationError, match="chosen and rejected are identical"):
        _pair("11", "11")


@pytest.mark.parametrize("soft_label", [-0.01, 1.01])
def test_soft_label_is_a_probability(soft_label: float) -> None:
    with pytest.raises(ValidationError, match="soft_label"):
        _pair("11", "12", soft_label)


@given(
    text=st.text(),
    tokens=st.none() | st.lists(st.integers(0, 2**31), max_size=5),
    logprob=st.floats(allow_nan=False, allow_infinity=False),
)
def test_completion_survives_json(text: str, tokens: list[int] | None, logprob: float) -> None:
    completion = Completion(
        id="c",
        prompt_id="q",
        message=Message(role="assistant", content=text),
        token_ids=None if tokens is None else tuple(tokens),
        sampler_logprobs=(logprob,),
    )
    line = completion.model_dump_json(exclude_none=True)
    assert "\n" not in line
    assert Completion.model_validate_json(line) == completion


@pytest.mark.parametrize(
    "record",
    [
        _judgment(Rating(axes={"style": RatedAxis(value=2, low=1, high=5)}), ("a",)),
        _judgment(Comparison(outcome="both_bad")),
        Timing(submitted_at="2026-11-20T10:00:00Z", active_s=1.5),
        _pair("11", "12", 0.75),
        ScoredCompletion(prompt_id="q", completion_id="a", reward="lexicon", score=0.1),
    ],
)
def test_record_survives_json(record: BaseModel) -> None:
    line = record.model_dump_json(exclude_none=True)
    assert type(record).model_validate_json(line) == record

"""Every kind of answer through every format: the same judgments come back, or the loss was said before writing."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harken.feedback.exchange.entry import (
    IMPORTED,
    Entry,
    Reading,
    Refusal,
    make_completion,
    make_judgment,
    make_prompt,
    message,
)
from harken.feedback.exchange.facts import ANSWERS, Fact, answer_fact, facts_of
from harken.feedback.exchange.read import Format, open_data
from harken.feedback.exchange.write import TARGETS, Style, Target, keeps, plan, suffixes, write
from harken.records import (
    Abstention,
    Answer,
    Assignment,
    Comparison,
    Completion,
    Correction,
    Critique,
    DemonstrationAnswer,
    ErrorSpan,
    Flag,
    Judge,
    Judgment,
    Message,
    RankingAnswer,
    RatedAxis,
    Rating,
    Spans,
    Timing,
)

# Texts with what formats trip over: quotes, formulas, markup, markers, several lines, signs of two UTF-16 units.
ODD = [
    "=1+1",
    "-a",
    "+a",
    "@a",
    "'=a",
    "a\nb",
    "a,b;c\td",
    '"',
    "<b>&amp;</b>",
    "\U0001f600 b",
    "é\u2028b",
    " a ",
    "a b",
]
TEXTS = st.one_of(
    st.sampled_from([*ODD, "\n\nHuman: x", "["]), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
SAID = TEXTS.filter(lambda text: bool(text.strip()))
KINDS = ("comparison", "tie", "both_bad", "unsure", "skip", "many", "ranking", "rating", "label", "spans", "steps")
TEXT_KINDS = ("correction", "critique", "demonstration", "abstention")


@st.composite
def entries(draw: st.DrawFn, kind: str) -> Entry:
    """One prompt, its completions, and one or two judgments of one kind."""
    roles = draw(st.sampled_from([("user",), ("user", "assistant", "user"), ("system", "user"), ("assistant",)]))
    prompt = make_prompt([message(role, draw(SAID)) for role in roles])
    number = {"many": 3, "ranking": 3, "demonstration": 0, "steps": 1, "label": 1, "rating": 1, "abstention": 1}.get(
        kind, 2
    )
    number = draw(st.integers(1, 2)) if kind in ("spans", "correction", "critique") else number
    texts = (
        ["one step\nanother"]
        if kind == "steps"
        else draw(st.lists(SAID, min_size=number, max_size=number, unique=True))
    )
    completions = [make_completion(prompt, text, model=draw(st.sampled_from(["", "m-1"]))) for text in texts]
    judgments: list[Judgment] = []
    for name in draw(st.sampled_from([("p1",), ("p1", "p2")])):
        judge = draw(st.sampled_from([Judge(id=name, kind="person"), Judge(id=name, kind="model"), IMPORTED]))
        timing = Timing(
            submitted_at=draw(st.sampled_from([None, "2026-11-20T10:00:00+00:00"])),
            active_s=draw(st.sampled_from([None, 2.5])),
        )
        shown = draw(st.permutations(completions))
        answer = draw(answers(kind, shown))
        rationale = draw(st.sampled_from(["", "because\n=so"]))
        judgment = make_judgment(name, prompt, shown, answer, judge=judge, rationale=rationale, timing=timing)
        if draw(st.integers(0, 9)) == 0:
            task = Assignment(project="p", task_id="t", lease_id="l")
            judgment = judgment.model_copy(update={"assignment": task, "flags": (Flag(reason="other"),)})
        judgments.append(judgment)
    return Entry(1, prompt, tuple(completions), tuple(judgments))


@st.composite
def answers(draw: st.DrawFn, kind: str, shown: list[Completion]) -> Answer:
    """An answer of a kind about what was shown."""
    names = [completion.id for completion in shown]
    match kind:
        case "comparison" | "many":
            return Comparison(
                outcome="win", winner=draw(st.sampled_from(names)), strength=draw(st.sampled_from([None, 0, 1, 2, 3]))
            )
        case "tie" | "both_bad" | "unsure" | "skip":
            return Comparison(outcome=kind)
        case "ranking":
            return RankingAnswer(ranks=dict(zip(names, draw(st.permutations([1, 2, 3])), strict=True)))
        case "rating":
            low, high = draw(st.sampled_from([(-4, 5), (1, 5), (1, 100)]))
            axis = RatedAxis(value=draw(st.sampled_from([1, 2, 2.5])), low=low, high=high)
            scope: Literal["conversation"] | None = draw(st.sampled_from([None, None, "conversation"]))
            names = draw(st.sampled_from([("q",), ("score",), ("q", "r & s")]))
            return Rating(axes=dict.fromkeys(names, axis), scope=scope)
        case "label":
            return Rating(axes={"label": RatedAxis(value=draw(st.integers(0, 1)), low=0, high=1)})
        case "steps":
            ends = ((0, 8), (9, 16))
            labels = draw(st.lists(st.sampled_from(["right step", "wrong step"]), min_size=2, max_size=2))
            spans = [
                ErrorSpan(completion_id=names[0], start=a, end=b, label=c)
                for (a, b), c in zip(ends, labels, strict=True)
            ]
            return Spans(spans=tuple(spans))
        case "spans":
            severity: Literal["minor", "major"] = draw(st.sampled_from(["minor", "major"]))
            return Spans(spans=(ErrorSpan(completion_id=names[0], start=0, end=1, label="wrong", severity=severity),))
        case "correction":
            return Correction(completion_id=names[0], text=draw(SAID))
        case "critique":
            return Critique(completion_id=names[0], text=draw(SAID))
        case "abstention":
            return Abstention(outcome=draw(st.sampled_from(["both_bad", "unsure", "skip"])))
        case _:
            return DemonstrationAnswer(text=draw(SAID))


def view(found: list[Entry], kept: frozenset[Fact]) -> Counter[str]:
    """What a format that keeps these facts must give back, in texts instead of ids."""
    views: Counter[str] = Counter()
    for entry in found:
        texts = {one.id: (one.message.content, one.model if Fact.models in kept else "") for one in entry.completions}
        said = [(one.role, one.content) for one in entry.prompt.messages]
        for judgment in entry.judgments:
            if not answer_fact(judgment) <= kept:
                continue
            shown = [texts[name] for name in judgment.shown]
            if Fact.order not in kept:
                shown.sort()
            timing = judgment.timing
            views[
                repr(
                    (
                        said,
                        shown,
                        _answer(judgment.answer, texts, kept),
                        judgment.judge.id if Fact.judges in kept else "",
                        judgment.judge.kind if Fact.kinds in kept else "",
                        judgment.rationale if Fact.rationales in kept else "",
                        timing.submitted_at if Fact.times in kept else "",
                        timing.active_s if Fact.durations in kept else "",
                    )
                )
            ] += 1
    return views


def _answer(answer: Answer, texts: dict[str, tuple[str, str]], kept: frozenset[Fact]) -> Any:
    match answer:
        case Comparison():
            strength = answer.strength if Fact.strengths in kept else None
            return answer.outcome, texts.get(answer.winner or ""), strength
        case RankingAnswer():
            return sorted((rank, texts[name]) for name, rank in answer.ranks.items())
        case Rating():
            return sorted((name, axis.value, axis.low, axis.high) for name, axis in answer.axes.items())
        case Spans():
            severities = [span.severity if Fact.severities in kept else "" for span in answer.spans]
            parts = [(texts[span.completion_id], span.start, span.end, span.label) for span in answer.spans]
            return list(zip(parts, severities, strict=True))
        case Correction() | Critique():
            return texts[answer.completion_id], answer.text
        case DemonstrationAnswer():
            return answer.text
        case Abstention():
            return answer.outcome


FORMAT_OF: dict[str, Format] = {
    "trl": "trl",
    "openrlhf": "trl",
    "harken": "harken",
    "hh-rlhf": "hh-rlhf",
    "oasst": "oasst",
    "label-studio": "label-studio",
    "argilla": "argilla",
    "arena": "arena",
    "helpsteer": "helpsteer",
    "llmfao": "llmfao",
    "prism": "prism",
    "csv": "csv",
}


def with_strengths(entry: Entry) -> Entry:
    """Give wins without a strength that of Harken's pairs where none is known, 1."""
    judgments = [
        judgment.model_copy(update={"answer": judgment.answer.model_copy(update={"strength": 1})})
        if isinstance(judgment.answer, Comparison) and judgment.answer.strength is None
        else judgment
        for judgment in entry.judgments
    ]
    return dataclasses.replace(entry, judgments=tuple(judgments))


def read_back(path: Path, target: Target) -> list[Entry]:
    format = FORMAT_OF.get(target) or FORMAT_OF[target.partition("-")[0]]
    found = list(open_data(Reading(path), format))
    refused = [item for item in found if isinstance(item, Refusal)]
    assert not refused
    return [item for item in found if isinstance(item, Entry)]


@pytest.mark.parametrize("target", TARGETS)
def test_judgments_come_back_or_the_loss_is_said(target: Target, tmp_path: Path) -> None:
    for kind in (*KINDS, *TEXT_KINDS):
        check_round_trips(target, kind, tmp_path / kind, max_examples=3)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_judgments_come_back_or_the_loss_is_said_a_thousand_times(target: Target, tmp_path: Path) -> None:
    for kind in (*KINDS, *TEXT_KINDS):
        check_round_trips(target, kind, tmp_path / kind, max_examples=80)


def test_every_kind_of_answer_is_tried() -> None:
    # What the web app asks for is of one of these types, each drawn by at least one kind.
    types = {get_args(member.model_fields["type"].annotation)[0] for member in get_args(get_args(Answer)[0])}
    drawn = {"tie": "comparison", "both_bad": "comparison", "unsure": "comparison", "skip": "comparison"}
    drawn |= {"many": "comparison", "label": "rating", "steps": "spans"}
    assert {drawn.get(kind, kind) for kind in (*KINDS, *TEXT_KINDS)} == types


def check_round_trips(target: Target, kind: str, folder: Path, *, max_examples: int) -> None:
    folder.mkdir()
    count = itertools.count()

    @settings(max_examples=max_examples)
    @given(entry=entries(kind), texts=st.booleans(), suffix=st.sampled_from(suffixes(target)))
    def round_trip(entry: Entry, texts: bool, suffix: str) -> None:
        style = Style(texts=texts)
        planned = plan([entry], target, style)
        kept = keeps(target)
        named = " ".join(planned.losses)
        for fact in facts_of(entry) - kept:
            assert fact.value in named
        if not planned.num_rows:
            assert planned.losses
            return
        path = folder / str(next(count)) / f"data{suffix}"
        path.parent.mkdir()
        written = write([entry], path, target, style, {})
        assert written.left_out == planned.left_out
        back = read_back(path, target)
        if target == "harken-pairs":
            entry = with_strengths(entry)
        if "a margin in all rows or in none" in named:
            kept -= {Fact.strengths}
        expected, found = view([entry], kept), view(back, kept)
        if not planned.left_out and facts_of(entry) & ANSWERS <= kept:
            assert found == expected
        else:
            missing = expected - found
            assert missing.total() <= planned.left_out.total()
            assert not (found - expected if facts_of(entry) & ANSWERS <= kept else None)

    round_trip()


def test_a_demonstration_that_two_people_wrote_is_one_and_said_to_be(tmp_path: Path) -> None:
    prompt = make_prompt([Message(role="user", content="2 + 2?")])
    given_by = [
        make_judgment((name,), prompt, (), DemonstrationAnswer(text="4"), judge=Judge(id=name, kind="person"))
        for name in ("ann", "bob")
    ]
    entry = Entry(1, prompt, (), tuple(given_by))
    planned = plan([entry], "harken-demonstrations", Style())
    assert planned.num_rows == 1
    assert "1 judgments cannot be written: another says the same of the same prompt" in planned.losses
    written = write([entry], tmp_path / "data.jsonl", "harken-demonstrations", Style(), {})
    assert (written.num_rows, written.left_out) == (1, planned.left_out)


def test_ties_both_ways_are_two_pairs_and_nothing_else(tmp_path: Path) -> None:
    prompt = make_prompt([Message(role="user", content="a")])
    both = [make_completion(prompt, text) for text in "bc"]
    entry = Entry(1, prompt, tuple(both), (make_judgment(1, prompt, both, Comparison(outcome="tie")),))
    assert not plan([entry], "trl-preference", Style()).num_rows
    planned = plan([entry], "trl-preference", Style(ties="both-ways"))
    assert planned.num_rows == 2
    assert "two pairs" in planned.losses[0]
    write([entry], tmp_path / "p.jsonl", "trl-preference", Style(ties="both-ways"), {})
    winners = [item.judgments[0].answer for item in read_back(tmp_path / "p.jsonl", "trl-preference")]
    assert {answer.winner for answer in winners if isinstance(answer, Comparison)} == {one.id for one in both}

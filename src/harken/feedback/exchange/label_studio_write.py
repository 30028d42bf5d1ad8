"""Label Studio's JSON export, written: a task for each order in which completions were shown, and a labeling config."""

from collections.abc import Iterable
from pathlib import Path

from harken.feedback.exchange.entry import BadRow, Entry, Row
from harken.feedback.exchange.facts import Fact
from harken.feedback.exchange.label_studio_config import NO_ERRORS, STRENGTHS, config_path, is_stars, written_config
from harken.records import (
    Abstention,
    Comparison,
    Completion,
    Correction,
    Critique,
    DemonstrationAnswer,
    ErrorSpan,
    Judgment,
    RankingAnswer,
    RatedAxis,
    Rating,
    Spans,
)

KEEPS = frozenset(
    {
        *(Fact.wins, Fact.ties, Fact.both_bad, Fact.unsure, Fact.skips, Fact.strengths, Fact.rankings, Fact.ratings),
        *(Fact.spans, Fact.severities, Fact.corrections, Fact.critiques, Fact.demonstrations, Fact.judges, Fact.order),
        *(Fact.rationales, Fact.times, Fact.durations, Fact.models, Fact.systems, Fact.begun),
    }
)
_WORDS = {value: word for word, value in STRENGTHS.items()}


class Written:
    """Tasks of an export, and what their labeling config must hold.

    Args:
        num_answers: the most completions that a task will have. Label Studio wants each text that the config names in
            every task, so the others get empty ones besides.
    """

    def __init__(self, num_answers: int = 0) -> None:
        self._num_answers = num_answers
        self._axes: dict[str, RatedAxis] = {}
        self._labels: dict[str, None] = {}

    def rows(self, entry: Entry) -> list[Row]:
        """Return the tasks of an entry.

        Raises:
            BadRow: a judgment that no control can hold.
        """
        by_id = {one.id: one for one in entry.completions}
        tasks: dict[tuple[str, ...], Row] = {}
        for judgment in entry.judgments:
            both = [by_id[name] for name in judgment.shown]
            if len({one.message.content for one in both}) < len(both):
                raise BadRow("two completions have the same text", "not supported")
            task = tasks.setdefault(judgment.shown, self._task(entry, both))
            group = "predictions" if judgment.judge.kind == "model" else "annotations"
            task[group].append(self._annotation(judgment, both))
        return list(tasks.values()) or [self._task(entry, entry.completions)]

    def beside(self, path: Path) -> dict[Path, str]:
        """Return what lies beside the tasks: the file of their labeling config -> its content."""
        return {config_path(path): written_config(self._num_answers, self._axes, list(self._labels))}

    def _task(self, entry: Entry, both: Iterable[Completion]) -> Row:
        own = {f"answer{place}": one for place, one in enumerate(both, start=1)}
        self._num_answers = max(self._num_answers, len(own))
        data: Row = {
            "prompt": entry.prompt.messages[-1].content,
            "messages": [one.model_dump() for one in entry.prompt.messages],
            **{f"answer{place}": "" for place in range(1, self._num_answers + 1)},
            **{key: one.message.content for key, one in own.items()},
            "items": [{"id": key, "title": "", "body": one.message.content} for key, one in own.items()],
            "models": {key: one.model for key, one in own.items() if one.model},
        }
        return {"data": data, "annotations": [], "predictions": []}

    def _annotation(self, judgment: Judgment, both: list[Completion]) -> Row:
        answer = judgment.answer
        keys = {one.id: f"answer{place}" for place, one in enumerate(both, start=1)}
        results = self._results(judgment, keys, both)
        if judgment.rationale:
            results.append(_result("rationale", "prompt", "textarea", {"text": [judgment.rationale]}))
        own: Row = {
            "id": judgment.id,
            "was_cancelled": isinstance(answer, Comparison) and answer.outcome == "skip",
            "lead_time": judgment.timing.active_s,
            "created_at": judgment.timing.submitted_at,
            "result": results,
        }
        if own["was_cancelled"] and judgment.rationale:
            raise BadRow("a skipped comparison with a rationale", "not supported")
        if judgment.judge.kind == "model":
            return {**own, "model_version": judgment.judge.id}
        return {**own, "completed_by": {"id": judgment.judge.id}}

    def _results(self, judgment: Judgment, keys: dict[str, str], both: list[Completion]) -> list[Row]:
        answer = judgment.answer
        match answer:
            case Comparison():
                return _comparison(answer, judgment)
            case RankingAnswer():
                if sorted(answer.ranks.values()) != list(range(1, len(both) + 1)):
                    raise BadRow("equal ranks, or completions without a rank", "not supported")
                best_first = sorted(answer.ranks, key=lambda name: answer.ranks[name])
                # Of the three shapes that occur, the one that Label Studio's own package takes.
                ranked = {"rank": [keys[name] for name in best_first]}
                return [_result("rank", "answers", "ranker", {"ranker": ranked})]
            case Rating():
                if len(judgment.shown) != 1:
                    raise BadRow("a rating of more than one completion", "not supported")
                return [self._rating(name, axis) for name, axis in answer.axes.items()]
            case Spans():
                texts = {one.id: one.message.content for one in both}
                if not answer.spans:
                    return [_result("errors", "prompt", "choices", {"choices": [NO_ERRORS]})]
                return [self._span(span, keys[span.completion_id], texts[span.completion_id]) for span in answer.spans]
            case Correction() | Critique():
                about = keys[answer.completion_id]
                return [_result(f"{about} {answer.type}", about, "textarea", {"text": [answer.text]})]
            case DemonstrationAnswer():
                if judgment.shown:
                    raise BadRow("a demonstration beside completions", "not supported")
                return [_result("demonstration", "prompt", "textarea", {"text": [answer.text]})]
            case Abstention():
                raise BadRow("a task left without an answer", "not supported")

    def _rating(self, name: str, axis: RatedAxis) -> Row:
        known = self._axes.setdefault(name, axis)
        if (known.low, known.high) != (axis.low, axis.high):
            raise BadRow(f"axis {name!r} has two scales", "not supported")
        if not is_stars(axis):
            self._axes[name] = axis
        kind = "rating" if is_stars(axis) else "number"
        return _result(name, "answer1", kind, {kind: axis.value})

    def _span(self, span: ErrorSpan, about: str, content: str) -> Row:
        self._labels[span.label] = None
        # The browser counts UTF-16 units.
        start, end = (len(content[:place].encode("utf-16-le")) // 2 for place in (span.start, span.end))
        if span.end > len(content):
            raise BadRow("a span ends behind its text", "not supported")
        value = {"start": start, "end": end, "text": content[span.start : span.end], "labels": [span.label]}
        return {**_result(f"{about} errors", about, "labels", value), "meta": {"severity": [span.severity]}}


def _comparison(answer: Comparison, judgment: Judgment) -> list[Row]:
    results: list[Row] = []
    if answer.outcome == "skip":
        return results
    word: object = answer.outcome if answer.winner is None else answer.strength
    if answer.winner is None and answer.strength is not None:
        raise BadRow(f"{answer.outcome} with a strength", "not supported")
    if answer.winner is not None:
        side = "left" if judgment.shown[0] == answer.winner else "right"
        results.append(_result("comparison", "comparison", "pairwise", {"selected": side}))
    if word is not None:
        results.append(_result("strength", "prompt", "choices", {"choices": [_WORDS[word]]}))  # pyright: ignore[reportArgumentType]
    return results


def _result(control: str, about: str, kind: str, value: Row) -> Row:
    return {"type": kind, "from_name": control, "to_name": about, "value": value, "origin": "manual"}

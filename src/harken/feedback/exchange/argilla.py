"""Argilla 2: records with fields, and several people's responses to questions; nested, flattened, or from the REST API.

The name of a question says what it is: `preference`, `ranking`, `strength`, `rationale`, `correction`, `critique`,
`demonstration`, else a rating (a number) or spans (a list). Its scale comes from the record's metadata or `--scale`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_dict,
    as_list,
    as_strength,
    each,
    judged_by,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    messages,
    shown,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.records import (
    Abstention,
    Answer,
    Comparison,
    Completion,
    Correction,
    Critique,
    DemonstrationAnswer,
    ErrorSpan,
    Judge,
    Judgment,
    Prompt,
    RankingAnswer,
    RatedAxis,
    Rating,
    Spans,
)

KEEPS = frozenset(
    {
        *(Fact.wins, Fact.ties, Fact.both_bad, Fact.unsure, Fact.skips, Fact.strengths, Fact.many, Fact.ratings),
        *(Fact.spans, Fact.corrections, Fact.critiques, Fact.demonstrations, Fact.judges, Fact.order),
        *(Fact.rationales, Fact.models, Fact.systems, Fact.begun),
    }
)
_OUTCOMES = {"tie": "tie", "both_bad": "both_bad", "both bad": "both_bad", "unsure": "unsure", "skip": "skip"}
_RESPONSE = re.compile(r"(response|completion|answer|generation)s?([-_ ]?\w+)?$", re.IGNORECASE)
_OLD = re.compile(r"(?P<question>.+)\.responses?\.(?P<user>[0-9a-f-]{36}|user-.+)$")
_TEXTS = ("rationale", "comment", "correction", "critique", "demonstration")
_LOST_RANKS = (
    "the ranks are lost: Argilla's Python client exports a ranking without its rank numbers; export over the REST API"
)


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry a record."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        fields, responses = _nested(row, reading) if "fields" in row else _flattened(row, reading)
        yield _Record(row_number, row, fields, reading).entry(responses)

    return each(rows, one)


Responses = dict[str, dict[str, Any]]
"""User -> question -> value; a discarded record has the question `""`."""


def _nested(row: Row, reading: Reading) -> tuple[Row, Responses]:
    found: Responses = {}
    given: Any = row.get("responses") or {}
    if isinstance(given, list):
        # The REST API: one object a user, with a status.
        for item in cast(list[object], given):
            own = as_dict(item, "a response")
            values = as_dict(own.get("values") or {}, "values")
            answers = {name: as_dict(value, "a value").get("value") for name, value in values.items()}
            _add_status(found, str(own.get("user_id")), str(own.get("status")), answers, reading)
        return as_dict(row["fields"], "fields"), found
    for question, items in as_dict(given, "responses").items():
        for item in as_list(items, f"responses to {question!r}"):
            own = as_dict(item, "a response")
            found.setdefault(str(own.get("user_id")), {})[question] = own.get("value")
    if found:
        reading.note("the nested export has no status: drafts count like submitted responses")
    return as_dict(row["fields"], "fields"), found


def _add_status(found: Responses, user: str, status: str, answers: dict[str, Any], reading: Reading) -> None:
    match status:
        case "draft":
            reading.note("a draft response was left out")
        case "discarded":
            found[user] = {"": None}
        case _:
            found.setdefault(user, {}).update(answers)


def _flattened(row: Row, reading: Reading) -> tuple[Row, Responses]:
    found: Responses = {}
    for key, value in row.items():
        old = _OLD.match(key)
        if old is not None and value is not None:
            found.setdefault(old["user"], {})[old["question"]] = value
        if not key.endswith(".responses") or value is None:
            continue
        question = key.removesuffix(".responses")
        values = as_list(value, key)
        users = as_list(row.get(f"{key}.users"), f"{key}.users")
        statuses = as_list(row.get(f"{key}.status") or ["submitted"] * len(values), f"{key}.status")
        if not len(values) == len(users) == len(statuses):
            raise BadRow(f"{key}: {len(values)} values, {len(users)} users, {len(statuses)} statuses")
        for one, user, status in zip(values, users, statuses, strict=True):
            _add_status(found, str(user), str(status), {question: one}, reading)
    return row, found


class _Record:
    def __init__(self, row_number: int, row: Row, fields: Row, reading: Reading) -> None:
        self._row_number, self._row, self._reading = row_number, row, reading
        self._metadata = as_dict(row.get("metadata") or {}, "metadata") or row
        self._prompt: Prompt = self._find_prompt(fields)
        names = sorted((name for name in fields if _RESPONSE.fullmatch(name)), key=lambda name: (len(name), name))
        self._of_field: dict[str, Completion] = {
            name: make_completion(self._prompt, fields[name], model=str(self._metadata.get(f"model.{name}") or ""))
            for name in names
            if isinstance(fields[name], str)
        }
        if len({one.id for one in self._of_field.values()}) < len(self._of_field):
            raise BadRow("two responses are identical", "identical")

    def _find_prompt(self, fields: Row) -> Prompt:
        if isinstance(fields.get("chat"), list):
            return make_prompt(messages(fields["chat"], "chat"))
        for key in ("prompt", "instruction", "question"):
            if key in fields:
                return make_prompt([message("user", text(fields, key))])
        raise BadRow("no field prompt, instruction, question or chat; name it with --map prompt=FIELD", "incomplete")

    def entry(self, responses: Responses) -> Entry:
        judgments: list[Judgment] = []
        for user, answers in responses.items():
            judgments += self._judgments(user, answers, judged_by(user))
        for question, item in self._suggestions().items():
            judge = Judge(id=str(item.get("agent") or "suggestion"), kind="model")
            judgments += self._judgments(judge.id, {question: item.get("value")}, judge)
        return Entry(self._row_number, self._prompt, tuple(self._of_field.values()), tuple(judgments))

    def _suggestions(self) -> dict[str, Row]:
        nested: Any = self._row.get("suggestions")
        if isinstance(nested, dict):
            return {name: as_dict(item, "a suggestion") for name, item in cast(Row, nested).items()}
        found: dict[str, Row] = {}
        for key, value in self._row.items():
            if key.endswith(".suggestion") and value is not None:
                agent = self._row.get(f"{key}.agent")
                found[key.removesuffix(".suggestion")] = {"value": value, "agent": agent}
        return found

    def _judgments(self, user: str, answers: dict[str, Any], judge: Judge) -> Iterator[Judgment]:
        key = (str(self._row.get("id") or self._row_number), user)
        both = tuple(self._of_field.values())
        if "" in answers:
            yield make_judgment(key, self._prompt, both, Comparison(outcome="skip"), judge=judge)
            return
        rationale = str(answers.get("rationale") or answers.get("comment") or "")
        for answer, about in self._answers(answers, both):
            yield make_judgment((key, answer.type), self._prompt, about, answer, judge=judge, rationale=rationale)

    def _answers(
        self, answers: dict[str, Any], both: tuple[Completion, ...]
    ) -> Iterator[tuple[Answer, tuple[Completion, ...]]]:
        axes: dict[str, RatedAxis] = {}
        for question, value in answers.items():
            if value is None or question in ("strength", "rationale", "comment"):
                continue
            if isinstance(value, list):
                yield self._listed(question, cast(list[Any], value)), both
            elif isinstance(value, str) and question not in _TEXTS:
                yield self._comparison(value, answers.get("strength")), both
            elif isinstance(value, str):
                yield self._written(question, value), () if question == "demonstration" else both
            else:
                axes[question] = self._rated(question, value)
        if axes:
            yield Rating(axes=axes), both

    def _comparison(self, value: str, strength: object) -> Answer:
        if value in _OUTCOMES:
            return Comparison.model_validate({"outcome": _OUTCOMES[value]})
        winner = self._of_field.get(value)
        if winner is None:
            known = ", ".join([*self._of_field, *_OUTCOMES])
            raise BadRow(f"preference {shown(value)}; expected the name of a response field or an outcome: {known}")
        number = as_strength(strength) if isinstance(strength, int | float) else None
        return Comparison(outcome="win", winner=winner.id, strength=number)

    def _only(self, question: str) -> Completion:
        if len(self._of_field) != 1:
            raise BadRow(f"question {question!r} does not say which of {len(self._of_field)} responses it is about")
        return next(iter(self._of_field.values()))

    def _written(self, question: str, value: str) -> Answer:
        match question:
            case "correction":
                return Correction(completion_id=self._only(question).id, text=value)
            case "critique":
                return Critique(completion_id=self._only(question).id, text=value)
            case _:
                return DemonstrationAnswer(text=value)

    def _listed(self, question: str, values: list[Any]) -> Answer:
        if question in ("ranking", "rank") or any(isinstance(item, str) or "rank" in item for item in values):
            ranks: dict[str, int] = {}
            for item in values:
                own: Row = cast(Row, item) if isinstance(item, dict) else {}
                rank: Any = own.get("rank")
                if not isinstance(rank, int):
                    raise BadRow(_LOST_RANKS, "incomplete")
                field = self._of_field.get(str(own.get("value")))
                if field is None:
                    raise BadRow(f"the ranking names {shown(own.get('value'))}, which is no response field")
                ranks[field.id] = rank
            return RankingAnswer(ranks=ranks)
        name = self._only(question).id
        parts = [as_dict(item, "a span") for item in values]
        spans = [
            ErrorSpan(completion_id=name, start=int(part["start"]), end=int(part["end"]), label=text(part, "label"))
            for part in parts
        ]
        return Spans(spans=tuple(spans))

    def _rated(self, question: str, value: object) -> RatedAxis:
        self._only(question)
        own = self._metadata
        scale = self._reading.scales.get(question)
        if scale is None and f"scale.{question}.low" in own:
            scale = (float(own[f"scale.{question}.low"]), float(own[f"scale.{question}.high"]))
        if scale is None:
            raise BadRow(f"the scale of question {question!r} is not in the export: give --scale {question}=1:5")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRow(f"{question} is {shown(value)}; expected a number")
        return RatedAxis(value=value, low=scale[0], high=scale[1])


def write(entry: Entry) -> list[Row]:
    """Return the nested records of an entry: one for each order in which completions were shown.

    Raises:
        BadRow: a judgment that no question can hold.
    """
    by_id = {one.id: one for one in entry.completions}
    records: dict[object, Row] = {}
    for judgment in entry.judgments:
        both = [by_id[name] for name in judgment.shown]
        if len({one.message.content for one in both}) < len(both):
            raise BadRow("two completions have the same text", "not supported")
        names = {one.id: f"response-{place}" for place, one in enumerate(both, start=1)}
        answers, metadata = _questions(judgment, names)
        if judgment.rationale:
            answers["rationale"] = judgment.rationale
        # One person answers each question once in a record.
        copy = 0
        while (key := (judgment.shown, str(metadata), copy)) in records and _has(records[key], judgment.judge.id):
            copy += 1
        record = records.setdefault(
            key,
            {
                "id": f"{judgment.id}",
                "status": "completed",
                "fields": {
                    "chat": [one.model_dump() for one in entry.prompt.messages],
                    **{names[one.id]: one.message.content for one in both},
                },
                "metadata": {**metadata, **{f"model.{names[one.id]}": one.model for one in both if one.model}},
                "suggestions": {},
                "responses": {},
            },
        )
        for question, value in answers.items():
            record["responses"].setdefault(question, []).append({"value": value, "user_id": judgment.judge.id})
    return list(records.values())


def _has(record: Row, user: str) -> bool:
    return any(item["user_id"] == user for items in record["responses"].values() for item in items)


def _questions(judgment: Judgment, names: dict[str, str]) -> tuple[Row, Row]:
    """Return (question -> value, metadata) of a judgment."""
    answer = judgment.answer
    match answer:
        case Comparison():
            if answer.winner is None and answer.strength is not None:
                raise BadRow(f"{answer.outcome} with a strength", "not supported")
            value = answer.outcome if answer.winner is None else names[answer.winner]
            return {"preference": value, **({} if answer.strength is None else {"strength": answer.strength})}, {}
        case Rating():
            return _ratings(answer, names)
        case Spans() | Correction() | Critique() if len(names) != 1:
            raise BadRow(f"{answer.type} beside other completions", "not supported")
        case Spans():
            parts = [{"start": span.start, "end": span.end, "label": span.label} for span in answer.spans]
            return {"errors": parts}, {}
        case Correction() | Critique():
            return {answer.type: answer.text}, {}
        case DemonstrationAnswer():
            if names:
                raise BadRow("a demonstration beside completions", "not supported")
            return {"demonstration": answer.text}, {}
        case RankingAnswer():
            raise BadRow("a ranking, whose ranks Argilla's client would lose", "not supported")
        case Abstention():
            raise BadRow("a task left without an answer", "not supported")


def _ratings(answer: Rating, names: dict[str, str]) -> tuple[Row, Row]:
    if {*answer.axes} & {*_TEXTS, "strength", "preference"} or len(names) != 1:
        raise BadRow("ratings of several completions, or an axis with the name of a question", "not supported")
    scales: Row = {}
    for name, axis in answer.axes.items():
        scales |= {f"scale.{name}.low": axis.low, f"scale.{name}.high": axis.high}
    return {name: axis.value for name, axis in answer.axes.items()}, scales

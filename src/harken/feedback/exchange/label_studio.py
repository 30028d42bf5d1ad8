"""Label Studio's JSON export: pairwise, ranker (three shapes), ratings, spans, texts, choices, by several annotators.

Left and right of a Pairwise are the first and second name of its `toName`, so the labeling config must be given: beside
the file as `NAME.config.xml`, or named. The minimal export (JSON_MIN, CSV) is refused: it loses what was chosen.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from harken.errors import DataError
from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_dict,
    as_list,
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
from harken.feedback.exchange.label_studio_config import NO_ERRORS, STRENGTHS, LabelingConfig, config_path, read_config
from harken.records import (
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
    Timing,
    content_id,
)

_LOSSY = (
    "the minimal export (JSON_MIN or CSV) of Label Studio: it does not say which side of a pair was chosen, and "
    "annotations by several people cannot be told apart; export the project again as JSON"
)
_Severity = Literal["minor", "major", "critical"]


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry a task.

    Raises:
        DataError: the minimal export.
    """
    config = LabelingConfig()
    beside = reading.labeling_config or config_path(reading.path)
    if reading.labeling_config is not None or beside.is_file():
        config = read_config(beside)

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "data" not in row:
            if {"annotator", "annotation_id", "lead_time"} & set(row):
                raise DataError(f"{reading.path}: {_LOSSY}")
            raise BadRow("no data: not a task of Label Studio", "incomplete")
        yield _Task(row_number, row, config, reading).entry()

    return each(rows, one)


@dataclass
class _Said:
    """What the results of one annotation amount to."""

    answers: list[tuple[Answer, tuple[Completion, ...]]] = field(
        default_factory=list[tuple[Answer, tuple[Completion, ...]]]
    )
    side: Completion | None = None
    choice: int | str | None = None
    is_pairwise: bool = False
    rationale: str = ""
    axes: dict[str, RatedAxis] = field(default_factory=dict[str, RatedAxis])
    spans: list[ErrorSpan] = field(default_factory=list[ErrorSpan])


class _Task:
    def __init__(self, row_number: int, row: Row, config: LabelingConfig, reading: Reading) -> None:
        self._row_number, self._row, self._config, self._reading = row_number, row, config, reading
        self._data = as_dict(row["data"], "data")
        said = messages(self._data["messages"], "messages") if "messages" in self._data else None
        self._prompt: Prompt = make_prompt(said or [message("user", self._prompt_text())])
        self._of_key: dict[str, Completion] = {}
        self._of_item: dict[str, Completion] = {}
        self._find_completions()

    def _prompt_text(self) -> str:
        for key in ("prompt", "question", "instruction"):
            if key in self._data:
                return text(self._data, key)
        raise BadRow("data has no prompt; name its key with --map prompt=KEY", "incomplete")

    def _find_completions(self) -> None:
        models = as_dict(self._data.get("models") or {}, "models")
        known = [
            key for pair in self._config.sides.values() for key in (self._config.fields.get(one, one) for one in pair)
        ]
        names = {key for key in self._data if key.startswith(("answer", "response", "completion"))}
        keys = list(dict.fromkeys([*known, *sorted(names, key=lambda key: (len(key), key))]))
        items = [as_dict(item, "an item") for item in as_list(self._data.get("items") or [], "items")]
        listed = {str(item.get("id")) for item in items}
        for key in keys:
            # Where there are items, an empty text that is none of them only fills a place in the labeling config.
            is_filler = "items" in self._data and self._data.get(key) == "" and key not in listed
            if isinstance(self._data.get(key), str) and not is_filler:
                self._of_key[key] = make_completion(self._prompt, self._data[key], model=str(models.get(key) or ""))
        for own in items:
            model = str(models.get(str(own.get("id"))) or "")
            self._of_item[str(own.get("id"))] = make_completion(self._prompt, text(own, "body"), model=model)

    def entry(self) -> Entry:
        completions = {one.id: one for one in [*self._of_key.values(), *self._of_item.values()]}
        judgments: list[Judgment] = []
        for item in as_list(self._row.get("annotations") or [], "annotations"):
            judgments += self._judgments(as_dict(item, "an annotation"), _person)
        for item in as_list(self._row.get("predictions") or [], "predictions"):
            judgments += self._judgments(as_dict(item, "a prediction"), _model)
        return Entry(self._row_number, self._prompt, tuple(completions.values()), tuple(judgments))

    def _all(self) -> tuple[Completion, ...]:
        return tuple({one.id: one for one in (self._of_key or self._of_item).values()}.values())

    def _judgments(self, own: Row, judge_of: Any) -> Iterator[Judgment]:
        said = _Said()
        results = as_list(own.get("result") or [], "result")
        for item in results:
            self._result(as_dict(item, "a result"), said)
        if own.get("was_cancelled"):
            said = _Said(answers=[(Comparison(outcome="skip"), self._all())])
        elif not results:
            self._reading.note("annotation was submitted without an answer; imported as skipped, never as a tie")
            said = _Said(answers=[(Comparison(outcome="skip"), self._all())])
        else:
            self._finish(said)
        seconds = own.get("lead_time")
        timing = Timing(
            submitted_at=own.get("created_at"), active_s=seconds if isinstance(seconds, int | float) else None
        )
        key = own.get("id") if own.get("id") is not None else self._row_number
        for answer, both in said.answers:
            yield make_judgment(
                (key, answer.type),
                self._prompt,
                both,
                answer,
                judge=judge_of(own),
                rationale=said.rationale,
                timing=timing,
            )

    def _finish(self, said: _Said) -> None:
        """Put together what several results say in common."""
        if said.is_pairwise or said.choice is not None:
            both = self._sides_shown()
            if isinstance(said.choice, str):
                said.answers.append((Comparison.model_validate({"outcome": said.choice}), both))
            elif said.side is not None:
                winner = said.side.id
                strength = said.choice
                values = {"outcome": "win", "winner": winner, "strength": strength}
                said.answers.append((Comparison.model_validate(values), both))
        if said.axes:
            said.answers.append((Rating(axes=said.axes), self._all()[:1]))
        if said.spans:
            said.answers.append((Spans(spans=tuple(said.spans)), self._all()))

    def _sides_shown(self) -> tuple[Completion, ...]:
        for sides in self._config.sides.values():
            keys = [self._config.fields.get(one, one) for one in sides]
            if all(key in self._of_key for key in keys):
                return tuple(self._of_key[key] for key in keys)
        raise BadRow(
            "which text was left is in the labeling config (Pairwise toName), which was not given: "
            f"save it as {config_path(self._reading.path).name} or name it with --labeling-config",
            "incomplete",
        )

    def _result(self, own: Row, said: _Said) -> None:
        value = as_dict(own.get("value") or {}, "value")
        control, about = str(own.get("from_name")), str(own.get("to_name"))
        match own.get("type"):
            case "pairwise":
                side = value.get("selected")
                if side not in ("left", "right"):
                    raise BadRow(f"selected is {shown(side)}; expected left or right")
                said.is_pairwise = True
                said.side = self._sides_shown()[side == "right"]
            case "ranker":
                self._ranker(value.get("ranker"), control, said)
            case "rating" | "number" as kind:
                said.axes[control] = self._axis(control, value.get(kind))
            case "labels":
                said.spans.append(self._span(own, value, about))
            case "choices":
                chosen = str(as_list(value.get("choices"), "choices")[0]).lower().replace("_", " ")
                if chosen == "no errors" or chosen not in STRENGTHS:
                    self._choice(chosen, control, said)
                else:
                    said.choice = STRENGTHS[chosen]
            case "textarea":
                lines = value.get("text")
                written = "\n".join(map(str, cast(list[object], lines))) if isinstance(lines, list) else str(lines)
                self._text(control, about, written, said)
            case other:
                self._reading.note(f"result of type {other!r} is not used")

    def _choice(self, chosen: str, control: str, said: _Said) -> None:
        if chosen == NO_ERRORS:
            said.answers.append((Spans(spans=()), self._all()))
        else:
            self._reading.note(f"choice {chosen!r} of {control!r} is not used")

    def _ranker(self, value: object, control: str, said: _Said) -> None:
        lists = cast(Row, value) if isinstance(value, dict) else {control: value}
        names = {bucket: [str(name) for name in as_list(items, "a ranked list")] for bucket, items in lists.items()}
        if len(names) > 1 and self._reading.buckets:
            if missing := set(names) - set(self._reading.buckets):
                raise BadRow(f"bucket {sorted(missing)[0]!r} is not among --buckets")
            names = {control: [name for bucket in self._reading.buckets for name in names.get(bucket, [])]}
        if len(names) > 1:
            self._reading.note("buckets have no order among each other; only ranks within one are read (see --buckets)")
        for bucket in names.values():
            if unknown := [name for name in bucket if name not in self._of_item]:
                raise BadRow(f"the ranking names item {unknown[0]!r}, which is not among the items", "incomplete")
            if len(bucket) > 1:
                ranks = {self._of_item[name].id: rank for rank, name in enumerate(bucket, start=1)}
                if len(ranks) < len(bucket):
                    raise BadRow("two ranked items have the same text", "identical")
                everything = {one.id: one for one in self._of_item.values()}
                said.answers.append((RankingAnswer(ranks=ranks), tuple(everything.values())))

    def _axis(self, control: str, value: object) -> RatedAxis:
        scale = self._reading.scales.get(control) or self._config.scales.get(control)
        if scale is None:
            raise BadRow(f"the scale of {control!r} is not known: give the labeling config, or --scale {control}=1:5")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRow(f"rating {control!r} is {shown(value)}; expected a number")
        return RatedAxis(value=value, low=scale[0], high=scale[1])

    def _about(self, about: str) -> Completion:
        found = self._of_key.get(self._config.fields.get(about, about))
        if found is None:
            raise BadRow(f"a result is about {about!r}, which is none of the completions", "incomplete")
        return found

    def _span(self, own: Row, value: Row, about: str) -> ErrorSpan:
        completion = self._about(about)
        start, end = _code_points(completion.message.content, value)
        severity: Any = as_dict(own.get("meta") or {}, "meta").get("severity")
        labels = as_list(value.get("labels"), "labels")
        span = {"completion_id": completion.id, "start": start, "end": end, "label": str(labels[0])}
        return ErrorSpan.model_validate({**span, **({"severity": severity[0]} if severity else {})})

    def _text(self, control: str, about: str, written: str, said: _Said) -> None:
        match control.rpartition(" ")[2]:
            case "rationale" | "comment" | "reason":
                said.rationale = written
            case "demonstration":
                said.answers.append((DemonstrationAnswer(text=written), ()))
            case "correction":
                own = self._about(about)
                said.answers.append((Correction(completion_id=own.id, text=written), self._all()))
            case "critique":
                own = self._about(about)
                said.answers.append((Critique(completion_id=own.id, text=written), self._all()))
            case _:
                self._reading.note(f"text of {control!r} is not used")


def _code_points(content: str, value: Row) -> tuple[int, int]:
    """Return a span's ends in code points; Label Studio's browser counts UTF-16 units.

    Raises:
        BadRow: the span's text does not stand there in either unit.
    """
    start, end = value.get("start"), value.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise BadRow(f"span {start!r} to {end!r}; expected two positions")
    stated = value.get("text")
    units = itertools.accumulate((2 if ord(sign) > 0xFFFF else 1 for sign in content), initial=0)
    places = {unit: place for place, unit in enumerate(units)}
    if start in places and end in places and stated in (None, content[places[start] : places[end]]):
        return places[start], places[end]
    if stated == content[start:end]:
        return start, end
    raise BadRow(f"span {start} to {end} does not hold the text that it states")


def _person(own: Row) -> Judge:
    """Return an annotation's judge; an e-mail address becomes a pseudonym."""
    by: object = own.get("completed_by")
    if isinstance(by, dict):
        who = cast(Row, by)
        by = who.get("id") if who.get("id") is not None else content_id("label-studio", who.get("email"))
    if by is None:
        return Judge(id=f"annotation-{own.get('id')}", kind="person")
    return judged_by(str(by))


def _model(own: Row) -> Judge:
    return Judge(id=str(own.get("model_version") or "unknown"), kind="model")

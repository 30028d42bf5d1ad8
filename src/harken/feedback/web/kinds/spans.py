"""Error spans: the field `spans` holds a JSON list of [start, end, label, severity], offsets in code points."""

import json

from pydantic import TypeAdapter, ValidationError

from harken.config.project import SpansTask
from harken.feedback.web.kinds.fields import BadForm, Fields
from harken.records import Completion, ErrorSpan, Spans

MAX_SPANS = 500
_ROWS = TypeAdapter(list[tuple[int, int, str, str]])


def spans_answer(task: SpansTask, fields: Fields, completion: Completion) -> Spans:
    """Return the marked errors; none is an answer too: the person looked and found nothing.

    Raises:
        BadForm: a span lies outside the text, or its label is none of the task's.
    """
    try:
        rows = _ROWS.validate_json(fields.get("spans") or "[]")
        length = len(completion.message.content)
        found: list[ErrorSpan] = []
        for start, end, label, severity in rows[:MAX_SPANS]:
            if label not in task.labels or end > length:
                raise BadForm(f"a mark at {start} to {end} ({label[:20]!r}) does not fit the text; mark it anew")
            values = {"completion_id": completion.id, "start": start, "end": end, "label": label, "severity": severity}
            found.append(ErrorSpan.model_validate(values))
    except ValidationError as error:
        raise BadForm("the marks could not be read; mark the errors anew") from error
    if len(rows) > MAX_SPANS:
        raise BadForm(f"{len(rows)} marks; at most {MAX_SPANS} can be kept")
    return Spans(spans=tuple(sorted(found, key=lambda span: (span.start, span.end, span.label))))


def spans_fields(answer: Spans) -> dict[str, str]:
    """Return the form that gives this answer."""
    return {"spans": json.dumps([[span.start, span.end, span.label, span.severity] for span in answer.spans])}

"""The form of a project: all that `harken collect tasks --set` can say, as fields."""

from typing import Any

from starlette.datastructures import FormData

from harken.config.project import ProjectConfig
from harken.errors import DataError
from harken.feedback.web.security import text_of

KINDS = {
    "comparison": "Comparison: which of two answers is better",
    "ranking": "Ranking: put two to nine answers in order",
    "rating": "Rating: one answer, each turn of a conversation, or all of it, on named scales",
    "demonstration": "Demonstration: write the answer",
    "critique": "Critique: say what is good and bad about one answer",
    "correction": "Correction: edit one answer",
    "spans": "Error spans: mark errors in one answer",
}
SCOPES = {
    "completion": "the answer",
    "turns": "each turn of the conversation",
    "conversation": "the conversation as a whole",
}


def project_values(form: FormData) -> dict[str, Any]:
    """Return the settings of a new project; a field that is empty or not there keeps its default.

    Raises:
        DataError: a scale cannot be read.
    """
    kind = text_of(form, "kind", "comparison")
    task: dict[str, Any] = {"kind": kind}
    if question := text_of(form, "question").strip():
        task["question"] = question
    match kind:
        case "comparison":
            task |= {name: text_of(form, name, "yes") == "yes" for name in ("strengths", "tie")}
        case "ranking":
            task["ties"] = text_of(form, "ties", "yes") == "yes"
        case "rating":
            task["scope"] = text_of(form, "scope", "completion")
            if axes := _axes(text_of(form, "axes")):
                task["axes"] = axes
        case "spans":
            if labels := _names(text_of(form, "labels")):
                task["labels"] = labels
        case _:
            pass  # has no settings of its own
    return {"task": task, **work_values(form)}


def work_values(form: FormData) -> dict[str, Any]:
    """Return the settings that can be changed later: how work is given out, not what is asked."""
    values: dict[str, Any] = {
        name: text
        for name in ("overlap", "rationale", "access", "lease_minutes", "max_tasks", "max_tasks_a_day")
        if (text := text_of(form, name).strip())
    }
    if number := text_of(form, "qualification_tasks").strip():
        percent = text_of(form, "qualification_percent").strip()
        values["qualification"] = {"num_tasks": number, **({"accuracy": _share(percent)} if percent else {})}
    if tags := _names(text_of(form, "sensitive_tags")):
        values["sensitive_tags"] = tags
    if "break_minutes" in form:
        values["break_minutes"] = text_of(form, "break_minutes").strip() or None
    return values


def work_fields(config: ProjectConfig) -> dict[str, str]:
    """Return the form's fields for settings, as `work_values` reads them."""
    found = {
        name: "" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"
        for name, value in config.model_dump(exclude={"task", "qualification", "sensitive_tags"}).items()
    }
    found["sensitive_tags"] = ", ".join(config.sensitive_tags)
    if config.qualification is not None:
        found["qualification_tasks"] = f"{config.qualification.num_tasks}"
        found["qualification_percent"] = f"{100 * config.qualification.accuracy:g}"
    return found


def _share(percent: str) -> float:
    try:
        return float(percent.removesuffix("%")) / 100
    except ValueError as error:
        raise DataError(f"{percent[:20]!r} is no share of qualification tasks; give percent, such as 80") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _axes(text: str) -> list[dict[str, Any]]:
    """Return the scales of a rating: names with commas between, or one scale a line with its ends."""
    axes: list[dict[str, Any]] = []
    keys = ("name", "low", "high", "low_label", "high_label")
    for line in text.splitlines():
        if "|" not in line:
            axes += [{"name": name} for name in _names(line)]
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) > len(keys):
            raise DataError(f"the scale {line[:60]!r} has {len(parts)} parts; expected {' | '.join(keys)}")
        axes.append({key: part for key, part in zip(keys, parts, strict=False) if part})
    return axes

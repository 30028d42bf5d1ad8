"""Which function makes the answer of which kind, and what is the same for all of them."""

from harken.config.project import (
    ComparisonTask,
    CorrectionTask,
    CritiqueTask,
    DemonstrationTask,
    RankingTask,
    RatingTask,
    SpansTask,
    TaskConfig,
)
from harken.feedback.web.kinds.comparison import comparison_answer, comparison_fields
from harken.feedback.web.kinds.fields import BadForm, Fields
from harken.feedback.web.kinds.ranking import ranking_answer, ranking_fields
from harken.feedback.web.kinds.rating import rating_answer, rating_fields
from harken.feedback.web.kinds.spans import spans_answer, spans_fields
from harken.feedback.web.kinds.texts import correction_answer, critique_answer, demonstration_answer
from harken.records import (
    Abstention,
    Answer,
    Comparison,
    Completion,
    Correction,
    Critique,
    DemonstrationAnswer,
    Prompt,
    RankingAnswer,
    Rating,
    Spans,
)

__all__ = ["BadForm", "Fields", "fill_form", "make_answer"]

WITHOUT_ANSWER = ("skip", "unsure", "both_bad")
"""Values of the button `outcome` that say why there is no answer."""


def make_answer(
    task: TaskConfig, fields: Fields, completions: tuple[Completion, ...], prompt: Prompt | None = None
) -> Answer:
    """Return the answer that a form gives.

    Args:
        task: what was asked.
        fields: of the form; `outcome` is the button that was pressed.
        completions: in the order shown.
        prompt: what the completions answer; only ratings of its turns need it.

    Raises:
        BadForm: the form is not complete.
    """
    outcome = fields.get("outcome", "answer")
    if outcome in WITHOUT_ANSWER:
        model = Comparison if isinstance(task, ComparisonTask) else Abstention
        return model.model_validate({"outcome": outcome})
    if outcome != "answer":
        raise BadForm(f"{outcome[:20]!r} is no button of this page; reload it")
    shown = tuple(completion.id for completion in completions)
    match task:
        case ComparisonTask():
            return comparison_answer(task, fields, shown)
        case RatingTask():
            return rating_answer(task, fields, prompt)
        case RankingTask():
            return ranking_answer(task, fields, shown)
        case DemonstrationTask():
            return demonstration_answer(fields)
        case CritiqueTask():
            return critique_answer(fields, shown[0])
        case CorrectionTask():
            return correction_answer(fields, completions[0])
        case SpansTask():
            return spans_answer(task, fields, completions[0])


def fill_form(task: TaskConfig, answer: Answer, shown: tuple[str, ...]) -> dict[str, str]:
    """Return the fields of a form that would give this answer, for a person who changes it."""
    match answer:
        case Comparison():
            return comparison_fields(answer, shown)
        case Rating():
            return rating_fields(task, answer) if isinstance(task, RatingTask) else {}
        case RankingAnswer():
            return ranking_fields(answer, shown)
        case Spans():
            return spans_fields(answer)
        case DemonstrationAnswer() | Critique() | Correction():
            return {"text": answer.text}
        case Abstention():
            return {}

"""Rating: a number for each axis, in the fields `axis-1`, `axis-2`, ...; `turn-1-axis-1`, ... of earlier turns."""

from harken.config.project import RatingTask
from harken.feedback.web.kinds.fields import Fields, choose_number
from harken.records import Prompt, RatedAxis, Rating, TurnRating


def _rated_turns(task: RatingTask, prompt: Prompt | None) -> list[int]:
    """Return the places in the prompt of the assistant's turns that are rated beside the completion."""
    if task.scope != "turns" or prompt is None:
        return []
    return [place for place, message in enumerate(prompt.messages) if message.role == "assistant"]


def rating_answer(task: RatingTask, fields: Fields, prompt: Prompt | None) -> Rating:
    """Return the answer that a form gives.

    Raises:
        BadForm: an axis has no value, or one outside its scale.
    """
    earlier = [
        TurnRating(message=place, axes=_axes(task, fields, f"turn-{place}-", f" of answer {number}"))
        for number, place in enumerate(_rated_turns(task, prompt), start=1)
    ]
    return Rating(
        axes=_axes(task, fields),
        turns=tuple(earlier) if task.scope == "turns" else None,
        scope="conversation" if task.scope == "conversation" else None,
    )


def _axes(task: RatingTask, fields: Fields, prefix: str = "", of: str = "") -> dict[str, RatedAxis]:
    axes: dict[str, RatedAxis] = {}
    for number, axis in enumerate(task.axes, start=1):
        missing = f"Choose a value for “{axis.name}”{of}."
        value = choose_number(fields, f"{prefix}axis-{number}", axis.low, axis.high, missing)
        axes[axis.name] = RatedAxis(value=value, low=axis.low, high=axis.high)
    return axes


def rating_fields(task: RatingTask, answer: Rating) -> dict[str, str]:
    """Return the form that gives this answer."""
    rated = {"": answer.axes} | {f"turn-{turn.message}-": turn.axes for turn in answer.turns or ()}
    return {
        f"{prefix}axis-{number}": f"{axes[axis.name].value:.0f}"
        for prefix, axes in rated.items()
        for number, axis in enumerate(task.axes, start=1)
        if axis.name in axes
    }

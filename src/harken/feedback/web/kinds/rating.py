"""Rating: one number for each axis, in the fields `axis-1`, `axis-2`, ..."""

from harken.config.project import RatingTask
from harken.feedback.web.kinds.fields import Fields, choose_number
from harken.records import RatedAxis, Rating


def rating_answer(task: RatingTask, fields: Fields) -> Rating:
    """Return the answer that a form gives.

    Raises:
        BadForm: an axis has no value, or one outside its scale.
    """
    axes: dict[str, RatedAxis] = {}
    for number, axis in enumerate(task.axes, start=1):
        missing = f"Choose a value for “{axis.name}”."
        value = choose_number(fields, f"axis-{number}", axis.low, axis.high, missing)
        axes[axis.name] = RatedAxis(value=value, low=axis.low, high=axis.high)
    return Rating(axes=axes)


def rating_fields(task: RatingTask, answer: Rating) -> dict[str, str]:
    """Return the form that gives this answer."""
    return {
        f"axis-{number}": f"{answer.axes[axis.name].value:.0f}"
        for number, axis in enumerate(task.axes, start=1)
        if axis.name in answer.axes
    }

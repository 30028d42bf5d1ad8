"""Comparison: the choice is the place of the better side and by how much, such as `2-3`, or `tie`."""

from typing import cast

from harken.config.project import ComparisonTask
from harken.feedback.web.kinds.fields import BadForm, Fields
from harken.records import Comparison

_CHOICES = {f"{side}-{strength}" for side in (1, 2) for strength in range(4)}


def comparison_answer(task: ComparisonTask, fields: Fields, shown: tuple[str, ...]) -> Comparison:
    """Return the answer that a form gives.

    Raises:
        BadForm: nothing, or nothing that the page offers, is chosen.
    """
    choice = fields.get("choice", "")
    if not choice:
        raise BadForm("Choose which answer is better first.")
    if choice == "tie" and task.tie:
        return Comparison(outcome="tie")
    if task.strengths and choice in _CHOICES:
        side, strength = choice.split("-")
        return Comparison.model_validate({"outcome": "win", "winner": shown[int(side) - 1], "strength": int(strength)})
    if not task.strengths and choice in ("1", "2"):
        return Comparison(outcome="win", winner=shown[int(choice) - 1])
    raise BadForm(f"{choice[:20]!r} is no choice of this page; reload it")


def comparison_fields(answer: Comparison, shown: tuple[str, ...]) -> dict[str, str]:
    """Return the form that gives this answer."""
    if answer.outcome != "win":
        return {"choice": "tie"} if answer.outcome == "tie" else {}
    side = str(shown.index(cast("str", answer.winner)) + 1)
    return {"choice": side if answer.strength is None else f"{side}-{answer.strength}"}

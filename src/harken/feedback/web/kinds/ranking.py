"""Ranking: a rank for each place on the page, in the fields `rank-1`, `rank-2`, ...; 1 is best."""

from harken.config.project import MAX_RANKED, RankingTask
from harken.feedback.web.kinds.fields import BadForm, Fields, choose_number
from harken.records import RankingAnswer


def ranking_answer(task: RankingTask, fields: Fields, shown: tuple[str, ...]) -> RankingAnswer:
    """Return the answer that a form gives; ranks without gaps, so that the same order is the same answer.

    Raises:
        BadForm: a completion has no rank, or two have the same where ties are not allowed.
    """
    given = [
        choose_number(fields, f"rank-{place}", 1, MAX_RANKED, f"Give answer {place} a rank.")
        for place in range(1, len(shown) + 1)
    ]
    steps = sorted(set(given))
    if not task.ties and len(steps) < len(given):
        raise BadForm("Two answers have the same rank; put each in a place of its own.")
    return RankingAnswer(ranks={name: steps.index(rank) + 1 for name, rank in zip(shown, given, strict=True)})


def ranking_fields(answer: RankingAnswer, shown: tuple[str, ...]) -> dict[str, str]:
    """Return the form that gives this answer."""
    return {f"rank-{place}": str(answer.ranks[name]) for place, name in enumerate(shown, start=1)}

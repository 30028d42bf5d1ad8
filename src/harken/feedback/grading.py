"""Whether an answer is the right one, for tasks that have a right one."""

from harken.records import Answer, Comparison, RankingAnswer, Rating

RATING_TOLERANCE = 1.0
"""Steps by which a rating may differ from the right one: nobody hits a scale of ten exactly."""


def can_be_graded(gold: Answer) -> bool:
    """Tell whether answers can be compared with this one: texts and marks cannot."""
    return isinstance(gold, Comparison | RankingAnswer | Rating)


def is_right(answer: Answer, gold: Answer) -> bool:
    """Tell whether an answer says the same as the right one.

    Comparisons: the same outcome and winner, whatever the strength. Rankings: every pair that the right ranking tells
    apart is in its order. Ratings: each axis is at most one step from the right value. An abstention is never right.

    Args:
        answer: what a person gave.
        gold: the right answer, one that `can_be_graded`.
    """
    match gold, answer:
        case Comparison(), Comparison():
            return (answer.outcome, answer.winner) == (gold.outcome, gold.winner)
        case RankingAnswer(), RankingAnswer():
            return all(
                one in answer.ranks and other in answer.ranks and answer.ranks[one] < answer.ranks[other]
                for one in gold.ranks
                for other in gold.ranks
                if gold.ranks[one] < gold.ranks[other]
            )
        case Rating(), Rating():
            return all(
                name in answer.axes and abs(answer.axes[name].value - axis.value) <= RATING_TOLERANCE
                for name, axis in gold.axes.items()
            )
        case _:
            return False

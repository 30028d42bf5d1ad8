"""All that is measured of the judgments in a store: ratings, comparisons and rankings."""

from collections.abc import Callable, Iterable
from typing import Any

from harken.errors import DataError
from harken.preferences.quality import agreement_report
from harken.preferences.votes_report import votes_report
from harken.records import Completion, Judgment


def feedback_report(
    judgments: Callable[[], Iterable[Judgment]],
    completions: Callable[[], Iterable[Completion]],
    kinds: Iterable[str],
    *,
    axis: str | None = None,
    gold: Iterable[Judgment] | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Return the report on ratings, with that on votes under `votes`, as far as there are any.

    Args:
        judgments: gives them anew at each call.
        completions: likewise.
        kinds: the kinds of answers there are.
        axis: of the ratings, where there are several.
        gold: judgments known to be right; None takes the gold answers of tasks.
        given: groups and probes, as for `votes_report`.

    Raises:
        DataError: there is nothing to measure; or as the two reports.
    """
    named = set(kinds)
    found: dict[str, Any] = {}
    if "rating" in named:
        found = agreement_report(judgments(), completions(), axis=axis)
    if votes := votes_report(judgments(), completions(), gold=gold, **given):
        found["votes"] = votes
    if not found:
        told = ", ".join(sorted(named)) or "nothing"
        raise DataError(f"no ratings, comparisons or rankings to measure; found {told}")
    return found

"""The statistics of the web app's dashboards, which knows nothing of statistics itself."""

from collections.abc import Sequence
from typing import Any

from harken.preferences.quality import agreement_report
from harken.preferences.votes_report import votes_report
from harken.records import Completion, Judgment, Rating

_RESAMPLES = 200
"""Bootstrap samples of an interval: a page is waited for; `harken collect agreement` takes more."""


def measure(judgments: Sequence[Judgment], completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the statistics of a dashboard: `votes` on comparisons and rankings, `ratings` by axis; None where none.

    The reports are those of `harken collect agreement`, without texts.
    """
    axes = sorted({axis for one in judgments if isinstance(one.answer, Rating) for axis in one.answer.axes})
    ratings = {axis: agreement_report(judgments, completions, axis=axis, resamples=_RESAMPLES) for axis in axes}
    texts = ("most_disputed", "most_agreed")
    return {
        "votes": votes_report(judgments, completions, resamples=_RESAMPLES),
        "ratings": {axis: {k: v for k, v in one.items() if k not in texts} for axis, one in ratings.items()} or None,
    }

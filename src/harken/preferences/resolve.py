"""Judgments -> rated completions: which ratings count, on which axis, on which scale."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from harken.errors import DataError
from harken.records import Completion, Judgment, Prompt, RatedAxis, RatedCompletion, Rating


@dataclass(frozen=True)
class RatingEntry:
    """One rating of one completion: what remains of a judgment when only a number is wanted."""

    judgment_id: str
    judge_id: str
    completion_id: str
    axis: str
    rating: RatedAxis


@dataclass(frozen=True)
class AxisRatings:
    """All ratings that count on one axis."""

    axis: str
    low: float
    high: float
    by_completion: dict[str, list[RatingEntry]]
    """Completion id -> its ratings; both sorted by id, so that the order of the input is gone."""


def ratings_on_axis(judgments: Iterable[Judgment], axis: str | None = None) -> AxisRatings:
    """Collect the ratings on one axis; superseded judgments and other kinds of answer do not count.

    Args:
        judgments: of any kind and in any order; read once.
        axis: the axis wanted; None takes the only one there is.

    Raises:
        DataError: no ratings, several axes and none named, an unknown axis, an axis with two
            scales, or a rating of anything but exactly one completion.
    """
    superseded: set[str] = set()
    entries: list[RatingEntry] = []
    for judgment in judgments:
        if judgment.supersedes is not None:
            superseded.add(judgment.supersedes)
        if isinstance(judgment.answer, Rating):
            entries += _entries(judgment, judgment.answer)
    entries = [entry for entry in entries if entry.judgment_id not in superseded]
    name = _choose_axis({entry.axis for entry in entries}, axis)
    entries = [entry for entry in entries if entry.axis == name]
    scales = {(entry.rating.low, entry.rating.high) for entry in entries}
    if len(scales) > 1:
        found = ", ".join(f"{low:g}..{high:g}" for low, high in sorted(scales))
        raise DataError(f"axis {name!r} has ratings on several scales ({found}); import them under two names")
    low, high = scales.pop()
    by_completion: dict[str, list[RatingEntry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.completion_id, entry.judgment_id)):
        by_completion.setdefault(entry.completion_id, []).append(entry)
    return AxisRatings(name, low, high, by_completion)


def _entries(judgment: Judgment, answer: Rating) -> list[RatingEntry]:
    if len(judgment.shown) != 1:
        raise DataError(
            f"judgment {judgment.id!r}: a rating of {len(judgment.shown)} completions at once; "
            "expected exactly one in `shown`"
        )
    return [
        RatingEntry(judgment.id, judgment.judge.id, judgment.shown[0], axis, rating)
        for axis, rating in answer.axes.items()
    ]


def _choose_axis(names: set[str], axis: str | None) -> str:
    if not names:
        raise DataError("the judgments hold no ratings; expected at least one rated completion")
    shown = ", ".join(sorted(names))
    if axis is not None and axis not in names:
        raise DataError(f"no ratings on axis {axis!r}; there are {shown}")
    if axis is None and len(names) > 1:
        raise DataError(f"ratings on several axes ({shown}); name one with `axis`")
    return axis if axis is not None else min(names)


def rated_completions(
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
    judgments: Iterable[Judgment],
    *,
    axis: str | None = None,
) -> list[RatedCompletion]:
    """Join prompts, completions and the ratings on one axis, sorted by completion id.

    Completions without a rating are left out; superseded judgments do not count; `split` is not yet
    decided and stays "train" (see `harken.preferences.split`).

    Raises:
        DataError: as `ratings_on_axis`, or a record refers to one that is not there.
    """
    prompt_by_id = {prompt.id: prompt for prompt in prompts}
    completion_by_id = {completion.id: completion for completion in completions}
    rated: list[RatedCompletion] = []
    for completion_id, entries in ratings_on_axis(judgments, axis).by_completion.items():
        completion = completion_by_id.get(completion_id)
        if completion is None:
            raise DataError(
                f"judgment {entries[0].judgment_id!r} rates completion {completion_id!r}, which is "
                "not among the completions; export them together"
            )
        prompt = prompt_by_id.get(completion.prompt_id)
        if prompt is None:
            raise DataError(
                f"completion {completion_id!r} belongs to prompt {completion.prompt_id!r}, which "
                "is not among the prompts; export them together"
            )
        ratings = tuple(entry.rating.value for entry in entries)
        rated.append(
            RatedCompletion(
                prompt=prompt,
                completion=completion,
                mean=statistics.fmean(ratings),
                std=statistics.pstdev(ratings),
                ratings=ratings,
                judgment_ids=tuple(entry.judgment_id for entry in entries),
            )
        )
    return rated

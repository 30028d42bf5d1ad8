"""Judgments -> rated completions: which ratings count."""

import random

import pytest

from harken.errors import DataError
from harken.preferences.resolve import rated_completions
from harken.records import (
    Comparison,
    Completion,
    Judge,
    Judgment,
    Message,
    Prompt,
    RatedAxis,
    Rating,
)

PROMPTS = [Prompt(id="q", messages=(Message(role="user", content="Review:\n"),))]
COMPLETIONS = [
    Completion(id=name, prompt_id="q", message=Message(role="assistant", content=name)) for name in ("a", "b", "c")
]
ANN = Judge(id="ann", kind="person")


def _rating(
    name: str,
    shown: tuple[str, ...],
    axes: dict[str, float],
    supersedes: str | None = None,
    high: float = 4,
) -> Judgment:
    rated = {axis: RatedAxis(value=value, low=-4, high=high) for axis, value in axes.items()}
    return Judgment(
        id=name,
        judge=ANN,
        prompt_id="q",
        shown=shown,
        answer=Rating(axes=rated),
        supersedes=supersedes,
    )


def test_ratings_are_joined_with_mean_and_population_deviation() -> None:
    judgments = [
        _rating("2", ("b",), {"x": 0}),
        _rating("3", ("a",), {"x": 4}),
        _rating("1", ("a",), {"x": 1}),
    ]
    one, other = rated_completions(PROMPTS, COMPLETIONS, judgments)
    assert (one.completion.id, one.ratings, one.judgment_ids) == ("a", (1, 4), ("1", "3"))
    # Mean 5/2; deviations +-3/2.
    assert (one.mean, one.std) == (2.5, 1.5)
    assert (other.completion.id, other.mean, other.std, other.split) == ("b", 0, 0, "train")


def test_superseded_judgments_and_other_answers_do_not_count() -> None:
    choice = Judgment(
        id="4",
        judge=ANN,
        prompt_id="q",
        shown=("a", "b"),
        answer=Comparison(outcome="win", winner="a"),
    )
    judgments = [
        _rating("1", ("a",), {"x": 1}),
        _rating("2", ("a",), {"x": 3}, supersedes="1"),
        choice,
    ]
    (item,) = rated_completions(PROMPTS, COMPLETIONS, judgments)
    assert (item.ratings, item.judgment_ids) == ((3,), ("2",))


def test_the_order_of_the_input_does_not_matter() -> None:
    judgments = [_rating(str(i), ("abc"[i % 3],), {"x": i % 4}) for i in range(12)]
    expected = rated_completions(PROMPTS, COMPLETIONS, judgments)
    random.Random(0).shuffle(judgments)
    assert rated_completions(PROMPTS, COMPLETIONS[::-1], judgments) == expected


def test_one_of_several_axes_must_be_named() -> None:
    judgments = [_rating("1", ("a",), {"x": 1, "y": -1}), _rating("2", ("b",), {"x": 2})]
    with pytest.raises(DataError, match=r"several axes \(x, y\); name one"):
        rated_completions(PROMPTS, COMPLETIONS, judgments)
    (item,) = rated_completions(PROMPTS, COMPLETIONS, judgments, axis="y")
    assert (item.completion.id, item.mean) == ("a", -1)
    with pytest.raises(DataError, match="no ratings on axis 'z'; there are x, y"):
        rated_completions(PROMPTS, COMPLETIONS, judgments, axis="z")


def test_data_that_cannot_be_joined_is_named() -> None:
    with pytest.raises(DataError, match="hold no ratings"):
        rated_completions(PROMPTS, COMPLETIONS, [])
    with pytest.raises(DataError, match="judgment '1': a rating of 2 completions at once"):
        rated_completions(PROMPTS, COMPLETIONS, [_rating("1", ("a", "b"), {"x": 1})])
    with pytest.raises(DataError, match="judgment '1' rates completion 'z', which is not among"):
        rated_completions(PROMPTS, COMPLETIONS, [_rating("1", ("z",), {"x": 1})])
    with pytest.raises(DataError, match="completion 'a' belongs to prompt 'q', which is not"):
        rated_completions([], COMPLETIONS, [_rating("1", ("a",), {"x": 1})])
    scales = [_rating("1", ("a",), {"x": 1}), _rating("2", ("a",), {"x": 1}, high=5)]
    with pytest.raises(DataError, match=r"several scales \(-4\.\.4, -4\.\.5\)"):
        rated_completions(PROMPTS, COMPLETIONS, scales)

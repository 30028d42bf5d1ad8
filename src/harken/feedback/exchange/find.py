"""Feedback by format and path, as recipes and `harken collect import` name it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from harken import assets
from harken.errors import UsageError
from harken.feedback.exchange.harken_folder import read_harken
from harken.feedback.exchange.llmfao import VOTES
from harken.feedback.exchange.own import FILES
from harken.feedback.exchange.prism import CONVERSATIONS
from harken.feedback.exchange.ratings import read_ratings
from harken.feedback.source import Imported

REVIEW_FILES = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}
"""What may follow `reviews:` -> beginning of its files' names."""


def foreign(path: str, format: str | None) -> Literal["ratings", "harken"] | None:
    """Say which of the two formats of `read_feedback` a path is, or None for one of `harken.feedback.exchange.read`."""
    if format in ("ratings", "harken"):
        return format
    if format is not None:
        return None
    where = Path(path)
    if where.is_dir():
        if (where / FILES[2]).exists():
            return "harken"
        return None if any((where / name).exists() for name in (VOTES, CONVERSATIONS)) else "ratings"
    is_ratings = where.name.endswith("_GroundTruth.txt") or path.partition(":")[0] == "reviews"
    return "ratings" if is_ratings else None


def read_feedback(format: Literal["ratings", "harken"], path: str, notify: Callable[[str], None]) -> Imported:
    """Read judgments from where a recipe's `collect` or `harken collect import` says.

    Args:
        format: `ratings`, or `harken` for a folder that `harken collect export` wrote.
        path: a file or folder; with format `ratings` also `reviews` or `reviews:movie`, which Harken fetches.
        notify: called with one line when something is fetched.

    Raises:
        UsageError: no such part of `reviews`.
        DataError: the data cannot be used; the message names file and line.
        AssetError: `reviews` could not be fetched.
    """
    if format == "harken":
        return read_harken(Path(path))
    name, _, part = path.partition(":")
    if name != "reviews":
        return read_ratings(Path(path))
    if part and part not in REVIEW_FILES:
        known = ", ".join(f"reviews:{key}" for key in REVIEW_FILES)
        raise UsageError(f"{path}: no such ratings; there are {known}, and reviews for all of them")
    folder = assets.fetch("reviews", notify)
    return read_ratings(folder / f"{REVIEW_FILES[part]}_GroundTruth.txt" if part else folder)

"""Import of the vaderSentiment ratings: short texts, each rated by 15 to 99 people from -4 to +4.

Every set is two tab-separated files. `NAME_GroundTruth.txt`: id, mean rating, text.
`NAME_anonDataRatings.txt`: id, mean rating, standard deviation, list of the single ratings. Source
of the data: Hutto and Gilbert, ICWSM 2014.
"""

import hashlib
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from harken.artifacts import read_bytes, sha256_file
from harken.errors import DataError
from harken.feedback.source import Imported, ImportSource
from harken.records import Completion, Judge, Judgment, Message, Prompt, RatedAxis, Rating, Timing

AXIS = "sentiment"
LOW, HIGH = -4, 4
MEAN_TOLERANCE = 0.01
"""How far the stated mean may lie from the mean of the ratings before a note says so."""

_TEXT_SUFFIX = "_GroundTruth.txt"
_RATINGS_SUFFIX = "_anonDataRatings.txt"
_FORMAT = "ratings"


@dataclass(frozen=True)
class _RatingSet:
    name: str
    file_prefix: str
    prompt_text: str


_SETS = (
    _RatingSet("movie", "movieReviewSnippets", "Movie review:\n"),
    _RatingSet("amazon", "amazonReviewSnippets", "Product review:\n"),
    _RatingSet("nyt", "nytEditorialSnippets", "Editorial:\n"),
    _RatingSet("tweets", "tweets", "Tweet:\n"),
)

# Frozen records that many judgments share: 200,000 of them then need little memory.
_RATINGS = {value: Rating(axes={AXIS: RatedAxis(value=value, low=LOW, high=HIGH)}) for value in range(LOW, HIGH + 1)}
_NO_TIMING = Timing()
_JUDGE_FIELDS = {"id", "kind"}
_JUDGMENT_FIELDS = {"id", "judge", "prompt_id", "shown", "answer", "timing", "source"}


@dataclass
class _Collected:
    prompts: list[Prompt] = field(default_factory=list[Prompt])
    completions: list[Completion] = field(default_factory=list[Completion])
    judgments: list[Judgment] = field(default_factory=list[Judgment])
    notes: list[str] = field(default_factory=list[str])


def read_ratings(path: Path) -> Imported:
    """Read one set, or all four from a folder, into one judgment per rating.

    Args:
        path: a `*_GroundTruth.txt` file with its `*_anonDataRatings.txt` beside it, or a folder of
            sets.

    Returns:
        The records, with notes on everything a reader of numbers should know: means that do not fit
        their ratings, repeated and empty texts (kept as they are), and that raters are unknown
        across items.

    Raises:
        DataError: a file is missing or not UTF-8, a row is malformed or off the scale (file:line),
            or the two files do not list the same ids.
    """
    files = _find_sets(path)
    collected = _Collected()
    for rating_set, text_file in files:
        _read_set(rating_set, text_file, collected)
    collected.notes.append(
        "the files do not say which person gave which rating: each rating has a judge of its own, "
        "and nothing can be said about single judges"
    )
    return Imported(
        prompts=collected.prompts,
        completions=collected.completions,
        judgments=collected.judgments,
        source=ImportSource(
            format=_FORMAT,
            name=path.resolve().name,
            sha256=_listing_digest([text_file for _, text_file in files]),
            notes=tuple(collected.notes),
        ),
    )


def _find_sets(path: Path) -> list[tuple[_RatingSet, Path]]:
    known = {rating_set.file_prefix + _TEXT_SUFFIX: rating_set for rating_set in _SETS}
    if path.is_dir():
        found = [(rating_set, path / name) for name, rating_set in known.items()]
        present = [(rating_set, file) for rating_set, file in found if file.exists()]
        if not present:
            raise DataError(f"{path}: no ratings here; expected one of {', '.join(known)}")
        return present
    if path.name not in known:
        raise DataError(f"{path}: not a ratings file; expected a folder or one of {', '.join(known)}")
    return [(known[path.name], path)]


def _ratings_file(text_file: Path) -> Path:
    return text_file.with_name(text_file.name.removesuffix(_TEXT_SUFFIX) + _RATINGS_SUFFIX)


def _listing_digest(text_files: list[Path]) -> str:
    files = [file for text_file in text_files for file in (text_file, _ratings_file(text_file))]
    listing = "\n".join(f"{file.name} {sha256_file(file)}" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _rows(path: Path, num_fields: int) -> list[list[str]]:
    """Return the tab-separated fields of every line; row i stands on line i + 1."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text (byte {error.start}); convert the file") from error
    # Not splitlines(): that would also split at characters which may stand inside a text.
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: the file is empty; expected one line per text")
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != num_fields:
            raise DataError(f"{path}:{number}: {len(row)} tab-separated fields, expected {num_fields}")
    return rows


def _read_set(rating_set: _RatingSet, text_file: Path, collected: _Collected) -> None:
    ratings_file = _ratings_file(text_file)
    texts = _rows(text_file, 3)
    rated = _match_by_id(text_file, texts, ratings_file, _rows(ratings_file, 4))
    prompt = Prompt(
        id=f"reviews-{rating_set.name}",
        messages=(Message(role="user", content=rating_set.prompt_text),),
        source=text_file.name,
        tags=("reviews",),
    )
    collected.prompts.append(prompt)
    num_off = 0
    for number, (item, stated, text) in enumerate(texts, start=1):
        rated_number, row = rated[item]
        ratings = _parse_ratings(ratings_file, rated_number, row[3])
        means = (
            _parse_mean(text_file, number, stated),
            _parse_mean(ratings_file, rated_number, row[1]),
        )
        actual = statistics.fmean(ratings)
        num_off += any(abs(mean - actual) > MEAN_TOLERANCE for mean in means)
        completion_id = f"{rating_set.name}-{item}"
        collected.completions.append(
            Completion(
                id=completion_id,
                prompt_id=prompt.id,
                message=Message(role="assistant", content=text),
            )
        )
        collected.judgments.extend(
            _judgment(completion_id, prompt.id, index, rating, ratings_file.name)
            for index, rating in enumerate(ratings)
        )
    collected.notes.extend(_set_notes(rating_set.name, [row[2] for row in texts], num_off))


def _judgment(completion_id: str, prompt_id: str, index: int, rating: int, source: str) -> Judgment:
    # `model_construct` with a shared set of field names: every value was checked above, and 200,000
    # validated judgments would take twice the time and twice the memory.
    name = f"{completion_id}-r{index}"
    judge = Judge.model_construct(_JUDGE_FIELDS, id=name, kind="person")
    return Judgment.model_construct(
        _JUDGMENT_FIELDS,
        id=name,
        judge=judge,
        prompt_id=prompt_id,
        shown=(completion_id,),
        answer=_RATINGS[rating],
        timing=_NO_TIMING,
        source=source,
    )


def _match_by_id(
    text_file: Path, texts: list[list[str]], ratings_file: Path, rated: list[list[str]]
) -> dict[str, tuple[int, list[str]]]:
    """Return id -> (line number, fields) of the ratings file; both files must hold the same ids."""
    # By id, not by line: the published amazon files list the same ids in two orders.
    text_lines = _line_of_each_id(text_file, texts)
    rated_lines = _line_of_each_id(ratings_file, rated)
    for file, lines, other_file, other_lines in (
        (text_file, text_lines, ratings_file, rated_lines),
        (ratings_file, rated_lines, text_file, text_lines),
    ):
        for item, number in lines.items():
            if item not in other_lines:
                raise DataError(
                    f"{file}:{number}: id {item!r} is missing from {other_file.name}; "
                    "expected the same ids in both files"
                )
    return {item: (number, rated[number - 1]) for item, number in rated_lines.items()}


def _line_of_each_id(path: Path, rows: list[list[str]]) -> dict[str, int]:
    lines: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if row[0] in lines:
            raise DataError(
                f"{path}:{number}: id {row[0]!r} stands on line {lines[row[0]]} already; expected every id once"
            )
        lines[row[0]] = number
    return lines


def _parse_mean(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise DataError(f"{path}:{number}: mean rating {text!r}; expected a number") from error
    if not math.isfinite(value):
        raise DataError(f"{path}:{number}: mean rating {text!r}; expected a finite number")
    return value


def _parse_ratings(path: Path, number: int, text: str) -> list[int]:
    try:
        values: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: ratings {text[:40]!r} are not a list of numbers: {error.msg}") from error
    if not isinstance(values, list) or not values:
        raise DataError(f"{path}:{number}: ratings {text[:40]!r}; expected a list of numbers")
    ratings: list[int] = []
    for value in cast(list[object], values):
        # bool is an int to Python, and 2.0 would pass for 2: neither is a rating of this format.
        if type(value) is not int or value not in _RATINGS:
            raise DataError(f"{path}:{number}: rating {value!r}; expected a whole number from {LOW} to {HIGH}")
        ratings.append(value)
    return ratings


def _set_notes(name: str, texts: list[str], num_off: int) -> list[str]:
    notes: list[str] = []
    if num_off:
        notes.append(
            f"{name}: {num_off} stated means lie more than {MEAN_TOLERANCE} from the mean of their "
            "ratings; the ratings are used, the stated means are not"
        )
    if repeated := len(texts) - len(set(texts)):
        notes.append(f"{name}: {repeated} texts repeat an earlier one word for word; kept as completions of their own")
    if empty := sum(not text.strip() for text in texts):
        notes.append(f"{name}: {empty} texts are empty; kept")
    return notes

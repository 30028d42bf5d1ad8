"""The ratings import: strict about the format, open about what is odd in the data."""

import time
from collections import Counter
from pathlib import Path

import pytest

from harken.errors import DataError
from harken.feedback.exchange import read_ratings
from harken.feedback.store import AddedCounts, FeedbackStore
from harken.records import Judge, Rating

TEXTS = b"1\t0.5\tA good film.\r\n2\t-2.0\tDull.\r\n"
RATINGS = b"1\t0.5\t0.5\t[1, 0]\r\n2\t-2.0\t0.0\t[-2, -2, -2]\r\n"


def _write(folder: Path, texts: bytes = TEXTS, ratings: bytes = RATINGS) -> Path:
    (folder / "movieReviewSnippets_anonDataRatings.txt").write_bytes(ratings)
    path = folder / "movieReviewSnippets_GroundTruth.txt"
    path.write_bytes(texts)
    return path


def test_every_rating_becomes_a_judgment(tmp_path: Path) -> None:
    imported = read_ratings(_write(tmp_path))
    (prompt,) = imported.prompts
    assert prompt.id == "reviews-movie"
    assert [(m.role, m.content) for m in prompt.messages] == [("user", "Movie review:\n")]
    assert [(c.id, c.message.role, c.message.content) for c in imported.completions] == [
        ("movie-1", "assistant", "A good film."),
        ("movie-2", "assistant", "Dull."),
    ]
    judgments = list(imported.judgments)
    assert [(j.id, j.shown) for j in judgments] == [
        ("movie-1-r0", ("movie-1",)),
        ("movie-1-r1", ("movie-1",)),
        ("movie-2-r0", ("movie-2",)),
        ("movie-2-r1", ("movie-2",)),
        ("movie-2-r2", ("movie-2",)),
    ]
    answers = [j.answer for j in judgments]
    assert all(isinstance(answer, Rating) for answer in answers)
    axes = [a.axes["sentiment"] for a in answers if isinstance(a, Rating)]
    assert [(axis.value, axis.low, axis.high) for axis in axes] == [
        (1, -4, 4),
        (0, -4, 4),
        *[(-2, -4, 4)] * 3,
    ]
    assert judgments[4].judge == Judge(id="movie-2-r2", kind="person")
    assert judgments[4].source == "movieReviewSnippets_anonDataRatings.txt"


def test_judgments_equal_validated_ones(tmp_path: Path) -> None:
    for judgment in read_ratings(_write(tmp_path)).judgments:
        assert type(judgment).model_validate_json(judgment.model_dump_json()) == judgment


def test_unknown_raters_are_always_noted(tmp_path: Path) -> None:
    assert [note[:31] for note in read_ratings(_write(tmp_path)).notes] == ["the files do not say which pers"]


def test_ids_in_another_order_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    first, second, _ = RATINGS.split(b"\r\n")
    shuffled = b"\xef\xbb\xbf" + second + b"\n" + first
    imported = read_ratings(_write(tmp_path, b"\xef\xbb\xbf" + TEXTS, shuffled))
    assert [c.id for c in imported.completions] == ["movie-1", "movie-2"]
    assert [j.id for j in imported.judgments][-1] == "movie-2-r2"


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    # U+2028 and U+0085 end lines for str.splitlines(), but here they stand inside a text.
    text = "One\u2028two\u0085three."
    imported = read_ratings(_write(tmp_path, TEXTS.replace(b"Dull.", text.encode())))
    assert [c.message.content for c in imported.completions][1] == text


def test_odd_means_repeated_and_empty_texts_are_noted_and_kept(tmp_path: Path) -> None:
    # The mean of [1, 0] is 0.5: 0.509 is within 0.01 of it, 0.511 is not.
    texts = b"1\t0.509\tSame.\n2\t-2.0\tSame.\n3\t0\t \n4\t0.511\tx\n"
    ratings = b"1\t.5\t0\t[1,0]\n2\t-2\t0\t[-2]\n3\t0\t0\t[0]\n4\t.5\t0\t[1,0]\n"
    imported = read_ratings(_write(tmp_path, texts, ratings))
    assert len(imported.completions) == 4
    assert [note.split(";")[0] for note in imported.notes[:-1]] == [
        "movie: 1 stated means lie more than 0.01 from the mean of their ratings",
        "movie: 1 texts repeat an earlier one word for word",
        "movie: 1 texts are empty",
    ]


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (b"1\t0.5\n2\t-2\tDull.\n", r"GroundTruth\.txt:1: 2 tab-separated fields, expected 3"),
        (TEXTS + b"\r\n3\t0\tx", r"GroundTruth\.txt:3: 1 tab-separated fields"),
        (TEXTS + b"1\t0\tx", r"GroundTruth\.txt:3: id '1' stands on line 1 already"),
        (TEXTS + b"3\t0\tx", r"GroundTruth\.txt:3: id '3' is missing from movie.*Ratings\.txt"),
        (TEXTS[:20], r"Ratings\.txt:2: id '2' is missing from movie.*GroundTruth\.txt"),
        (TEXTS.replace(b"-2.0", b"bad"), r"GroundTruth\.txt:2: mean rating 'bad'; expected a num"),
        (TEXTS.replace(b"-2.0", b"nan"), r"GroundTruth\.txt:2: mean rating 'nan'; .* finite"),
        (TEXTS.replace(b"Dull", b"D\xfcll"), r"GroundTruth\.txt:2: not UTF-8 text \(byte 28\)"),
        (b"", r"GroundTruth\.txt: the file is empty"),
    ],
)
def test_bad_text_files_are_named_by_line(tmp_path: Path, texts: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_ratings(_write(tmp_path, texts))


@pytest.mark.parametrize(
    ("ratings", "problem"),
    [
        ("[1, 5]", "rating 5; expected a whole number from -4 to 4"),
        ("[1, 0.5]", "rating 0.5; expected a whole number"),
        ("[true]", "rating True; expected a whole number"),
        ("[NaN]", "rating nan; expected a whole number"),
        ("[]", r"ratings '\[\]'; expected a list of numbers"),
        ("3", "ratings '3'; expected a list of numbers"),
        ("[1,", r"ratings '\[1,' are not a list of numbers"),
        ("__import__('os')", ".* are not a list of numbers"),
    ],
)
def test_bad_ratings_are_named_by_line(tmp_path: Path, ratings: str, problem: str) -> None:
    content = RATINGS.replace(b"[-2, -2, -2]", ratings.encode())
    with pytest.raises(DataError, match=r"Ratings\.txt:2: " + problem):
        read_ratings(_write(tmp_path, ratings=content))


def test_missing_files_and_folders_without_ratings_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no ratings here; expected one of movieReviewSnippets_"):
        read_ratings(tmp_path)
    with pytest.raises(DataError, match=r"other\.txt: not a ratings file"):
        read_ratings(tmp_path / "other.txt")
    path = _write(tmp_path)
    (tmp_path / "movieReviewSnippets_anonDataRatings.txt").unlink()
    with pytest.raises(DataError, match=r"anonDataRatings\.txt: cannot be read: No such file"):
        read_ratings(path)


def test_the_source_hash_covers_both_files(tmp_path: Path) -> None:
    before = read_ratings(_write(tmp_path)).source
    assert before.name == "movieReviewSnippets_GroundTruth.txt"
    after = read_ratings(_write(tmp_path, ratings=RATINGS.replace(b"[1, 0]", b"[0, 1]"))).source
    assert after.sha256 != before.sha256


def test_all_four_real_sets_are_read_whole(reviews: Path) -> None:
    imported = read_ratings(reviews)
    rows = Counter(c.prompt_id.removeprefix("reviews-") for c in imported.completions)
    assert rows == {"movie": 10605, "amazon": 3708, "nyt": 5190, "tweets": 4200}
    per_item = Counter(j.shown[0] for j in imported.judgments)
    ranges = {
        name: (min(counts), max(counts))
        for name in rows
        if (counts := [n for item, n in per_item.items() if item.startswith(f"{name}-")])
    }
    assert ranges == {"movie": (15, 29), "amazon": (20, 20), "nyt": (20, 20), "tweets": (20, 99)}
    # Counted with another program over the raw files.
    assert [note.split(";")[0] for note in imported.notes[:-1]] == [
        "movie: 2 texts repeat an earlier one word for word",
        "amazon: 11 texts repeat an earlier one word for word",
        "nyt: 71 texts repeat an earlier one word for word",
        "tweets: 196 stated means lie more than 0.01 from the mean of their ratings",
    ]


def test_the_real_movie_ratings_are_stored_in_seconds(reviews: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    imported = read_ratings(reviews / "movieReviewSnippets_GroundTruth.txt")
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        added = store.add(imported.prompts, imported.completions, imported.judgments, source=imported.source)
        assert added == AddedCounts(1, 10605, 198810, 0)
        assert store.export(tmp_path / "out").num_records == 1 + 10605 + 198810
    # 7 s on two quiet cores; the bound is for a busy machine.
    assert time.perf_counter() - start < 60

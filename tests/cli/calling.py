"""Calls of the command line inside this process, and the small files they read."""

import contextlib
import io
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harken.cli import run_command

FP32 = ("--set", "compute.dtype=float32")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The last line on standard error."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def call(*arguments: object) -> Ended:
    """Run one command and return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_command([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_data(folder: Path) -> None:
    """Write small demonstrations, pairs and prompts into a folder."""
    draw = random.Random(0)
    texts = [f"name {number} films" for number in range(30)]
    demonstrations = [
        {"prompt": text, "completion": " ".join(draw.choices(["good", "bad", "dull"], k=3))} for text in texts
    ]
    write_rows(folder / "demonstrations.jsonl", demonstrations)
    pairs = [{"prompt": text, "chosen": "good " * draw.randint(1, 3), "rejected": "bad"} for text in texts]
    write_rows(folder / "pairs.jsonl", pairs)
    (folder / "prompts.txt").write_text("".join(f"{text}\n" for text in texts[:8]), encoding="utf-8")
    (folder / "heldout.txt").write_text("name 40 films\nname 41 films\n", encoding="utf-8")


def write_ratings(folder: Path, count: int = 40) -> Path:
    """Write texts with ratings in the format of the VADER files, better words rated higher, and return the folder."""
    draw = random.Random(0)
    words = {"good": 3, "fine": 1, "flat": -1, "bad": -3}
    texts: list[str] = []
    ratings: list[str] = []
    for number in range(count):
        word = draw.choice(list(words))
        given = [max(-4, min(4, words[word] + draw.choice([-1, 0, 1]))) for _ in range(5)]
        mean = sum(given) / len(given)
        begin = " ".join(draw.sample(["the", "film", "with", "two", "old", "men", "is", "long"], k=8))
        texts.append(f"{number}\t{mean}\t{begin} {word} {number}\n")
        ratings.append(f"{number}\t{mean}\t0.8\t{given}\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movieReviewSnippets_GroundTruth.txt").write_text("".join(texts), encoding="utf-8")
    (folder / "movieReviewSnippets_anonDataRatings.txt").write_text("".join(ratings), encoding="utf-8")
    return folder

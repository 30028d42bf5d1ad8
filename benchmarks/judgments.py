"""A million judgments: seconds and peak memory of importing, measuring and resolving them, each a process of its own.

`python benchmarks/judgments.py` makes a file of comparisons (once), then runs `harken collect import`, `harken collect
agreement`, `harken collect export` and `harken preferences --set resolve.kind=bradley_terry` on it, one after another.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COMPLETIONS = 5
"""Of each prompt, by as many models: ten pairs."""
MODEL_WORTH = (1.0, 0.5, 0.0, -0.5, -1.0)
TIES = 0.15
WANTED = {"import": 180.0, "agreement": 60.0, "bradley-terry": 60.0}
"""Seconds."""
WANTED_GB = 2.0


def comparisons(judgments: int, prompts: int, judges: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield rows in random order of prompts; what each says is drawn from judges who differ in care and side habit."""
    rng = np.random.default_rng(seed)
    asked, answered = _texts(seed, prompts, 12), _texts(seed + 1, prompts * COMPLETIONS, 40)
    prompt = rng.integers(0, prompts, judgments)
    judge = rng.integers(0, judges, judgments)
    care, habit = rng.uniform(0, 2, judges), rng.normal(0, 0.2, judges)
    worth = np.array(MODEL_WORTH) + rng.normal(0, 1, (prompts, COMPLETIONS))
    first = rng.integers(0, COMPLETIONS, judgments)
    second = (first + rng.integers(1, COMPLETIONS, judgments)) % COMPLETIONS
    logit = care[judge] * (worth[prompt, first] - worth[prompt, second]) + habit[judge]
    won, tied = rng.random(judgments) < 1 / (1 + np.exp(-logit)), rng.random(judgments) < TIES
    for n in range(judgments):
        name, sides = int(prompt[n]), (int(first[n]), int(second[n]))
        yield {
            "prompt": asked[name],
            **{f"completion_{letter}": answered[name * COMPLETIONS + s] for letter, s in zip("ab", sides, strict=True)},
            **{f"model_{letter}": f"model-{s}" for letter, s in zip("ab", sides, strict=True)},
            "winner": "tie" if tied[n] else "a" if won[n] else "b",
            "judge": f"judge-{judge[n]:04d}",
        }


def _texts(seed: int, count: int, mean_words: int) -> list[str]:
    """Return made-up texts, none shorter than half the mean or longer than one and a half."""
    rng = random.Random(seed)
    syllables = [one + two for one in "bdfgklmnprst" for two in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(3000)]
    return [" ".join(rng.choices(words, k=rng.randint(mean_words // 2, mean_words * 3 // 2))) for _ in range(count)]


@dataclass(frozen=True)
class Used:
    """What a process took."""

    seconds: float
    processor_seconds: float
    peak_gb: float


def run(command: Sequence[str]) -> Used:
    """Run a command to its end and measure it.

    Raises:
        SystemExit: it failed.
    """
    start = time.monotonic()
    pid = os.posix_spawn(command[0], list(command), os.environ)
    _, status, usage = os.wait4(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    return Used(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9)


def main() -> None:
    """Make the data, run the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgments", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--judges", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("out/judgments"), help="folder; about 2.5 GB for a million")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"{given.judgments}-{given.prompts}-{given.judges}.jsonl"
    if not file.exists():
        part = file.with_suffix(".part")
        with part.open("w", encoding="utf-8") as out:
            for row in comparisons(given.judgments, given.prompts, given.judges):
                out.write(json.dumps(row) + "\n")
        part.rename(file)
    store = given.out / "feedback.db"
    for old in given.out.glob("feedback.db*"):
        old.unlink()
    shutil.rmtree(given.out / "export", ignore_errors=True)
    harken = (sys.executable, "-c", "from harken.cli import main; main()")
    url, export, pairs = f"sqlite:///{store}", str(given.out / "export"), str(given.out / "pairs.jsonl")
    commands = {
        "import": ("collect", "import", str(file), "--store", url, "--format", "csv"),
        "agreement": ("collect", "agreement", "--store", url),
        "export": ("collect", "export", "--store", url, "--out", export),
        "bradley-terry": ("preferences", export, "--out", pairs, "--set", "resolve.kind=bradley_terry"),
    }
    lines = ["command        seconds  processor  peak memory"]
    for name, command in commands.items():
        used = run((*harken, *command))
        is_met = used.seconds <= WANTED.get(name, np.inf) and used.peak_gb <= WANTED_GB
        lines.append(
            f"{name:13s}{used.seconds:8.1f} s{used.processor_seconds:9.1f} s{used.peak_gb:10.2f} GB"
            f"  {'met' if is_met else 'MISSED'}"
        )
    data = f"{given.judgments} judgments, {given.prompts} prompts, {given.judges} judges, {file.stat().st_size} bytes"
    sys.stdout.write("\n".join(["", data, *lines, ""]))


if __name__ == "__main__":
    main()

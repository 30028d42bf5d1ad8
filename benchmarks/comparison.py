"""The arithmetic of a comparison: equal work or not, medians, ratios, the table. No torch, no peer, no files."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 1e-3
"""Largest difference of first-step losses in fp32, relative where they are above 1."""

GREEDY_SHARE = 0.9
"""Share of greedy tokens that have to agree in fp32: where two tokens are nearly as likely, rounding decides, and all
that follow differ."""

Result = Mapping[str, Any]
"""One line that a side printed: side, seconds, tokens, peak_bytes, proof, settings, versions."""


@dataclass(frozen=True)
class Row:
    """One side of the table; medians over its runs."""

    name: str
    runs: int
    seconds: float
    seconds_least: float
    seconds_most: float
    tokens: int
    tokens_per_s: float
    items_per_s: float
    peak_gb: float
    """10^9 bytes."""
    times_slower: float
    """Its seconds over Harken's: how many times faster Harken is."""
    times_memory: float
    """Its peak memory over Harken's."""


def differences(proofs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is not equal between the first side and each other one, in words; empty when all is.

    Args:
        proofs: side -> what it found in fp32 on the same tokens: losses by name, or `greedy` rows of tokens.
    """
    (first, expected), *others = proofs.items()
    problems: list[str] = []
    for name, found in others:
        for odd in sorted(set(expected) ^ set(found)):
            problems.append(f"{odd!r} was reported by {first if odd in expected else name} only")
        for key in [key for key in expected if key in found]:
            if key == "greedy":
                problems += _greedy_differences(first, expected[key], name, found[key])
            elif not abs(expected[key] - found[key]) <= TOLERANCE * max(1.0, abs(expected[key])):
                problems.append(
                    f"{key}: {first} {expected[key]:.6f}, {name} {found[key]:.6f}, allowed difference {TOLERANCE}"
                )
        if not set(expected) & set(found):
            problems.append(f"{first} and {name} reported nothing that could be compared")
    return problems


def _greedy_differences(first: str, expected: list[list[int]], name: str, found: list[list[int]]) -> list[str]:
    if [len(row) for row in expected] != [len(row) for row in found]:
        return [f"greedy completions: {first} and {name} drew different numbers of tokens"]
    if [row[0] for row in expected] != [row[0] for row in found]:
        return [f"greedy completions: the first tokens of {first} and {name} differ"]
    pairs = [pair for rows in zip(expected, found, strict=True) for pair in zip(*rows, strict=True)]
    share = sum(left == right for left, right in pairs) / len(pairs)
    if share < GREEDY_SHARE:
        return [
            f"greedy completions: {first} and {name} agree in {share:.0%} of the tokens, at least {GREEDY_SHARE:.0%}"
        ]
    return []


def token_differences(results: Mapping[str, Result], expected: Sequence[int] | None) -> list[str]:
    """Return which sides did not read or draw the same tokens in the same steps; none was cut when it is empty.

    Args:
        results: side -> one of its results.
        expected: tokens of each step as counted from the data file, or None to compare the sides only.
    """
    (first, reference), *_ = results.items()
    wanted = list(reference["tokens"] if expected is None else expected)
    source = first if expected is None else "the data file"
    return [
        f"tokens of each step: {source} {wanted}, {name} {list(result['tokens'])}"
        for name, result in results.items()
        if list(result["tokens"]) != wanted
    ]


def timed(result: Result, warmup: int) -> tuple[float, int]:
    """Return seconds and tokens of a run, its warm-up steps left out."""
    seconds, tokens = result["seconds"][warmup:], result["tokens"][warmup:]
    assert seconds, "a run has at least one step behind its warm-up"
    return math.fsum(seconds), sum(tokens)


def summarize(runs: Mapping[str, Sequence[Result]], *, warmup: int, items: int) -> list[Row]:
    """Return a row for each side.

    Args:
        runs: side -> its results; the first side is Harken.
        warmup: steps at the beginning of each run that do not count.
        items: rows, pairs or episodes of a run's timed steps.
    """
    rows: list[Row] = []
    for name, results in runs.items():
        seconds = [timed(result, warmup)[0] for result in results]
        middle = statistics.median(seconds)
        tokens = timed(results[0], warmup)[1]
        peak = statistics.median(result["peak_bytes"] for result in results) / 1e9
        base = rows[0] if rows else None
        rows.append(
            Row(
                name=name,
                runs=len(results),
                seconds=middle,
                seconds_least=min(seconds),
                seconds_most=max(seconds),
                tokens=tokens,
                tokens_per_s=tokens / middle,
                items_per_s=items / middle,
                peak_gb=peak,
                times_slower=1.0 if base is None else middle / base.seconds,
                times_memory=1.0 if base is None else peak / base.peak_gb,
            )
        )
    return rows


def best_peer(rows: Sequence[Row]) -> Row | None:
    """Return the fastest of the peers, which is the one that counts."""
    return min(rows[1:], key=lambda row: row.seconds, default=None)


def text_table(rows: Sequence[Row], unit: str) -> str:
    """Return the rows as a Markdown table, the fastest peer's ratios in bold."""
    best = best_peer(rows)
    lines = [
        f"| side | seconds (least-most of {rows[0].runs}) | tokens/s | {unit}/s | peak memory "
        "| Harken's speed | Harken's memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = ("", "") if row is rows[0] else (f"{row.times_slower:.2f} x", f"1/{row.times_memory:.2f}")
        speed, memory = (f"**{ratio}**" for ratio in ratios) if row is best else ratios
        lines.append(
            f"| {row.name} | {row.seconds:.2f} ({row.seconds_least:.2f}-{row.seconds_most:.2f}) "
            f"| {row.tokens_per_s:,.0f} | {row.items_per_s:.3g} | {row.peak_gb:.2f} GB | {speed} | {memory} |"
        )
    return "\n".join(lines)


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows for JSON."""
    return [asdict(row) for row in rows]


def line_through(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Return intercept, slope and the largest relative distance from the least-squares line y = a + b x."""
    slope, intercept = statistics.linear_regression(xs, ys)
    worst = max(abs(intercept + slope * x - y) / y for x, y in zip(xs, ys, strict=True))
    return intercept, slope, worst

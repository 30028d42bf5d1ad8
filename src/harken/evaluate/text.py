"""Metrics of plain text: diversity over a set, repetition inside a text, length. No torch."""

import re
from collections.abc import Iterable, Sequence

WORD = re.compile(r"\w+(?:['’]\w+)*")  # noqa: RUF001 (people write both apostrophes)


def words(text: str) -> list[str]:
    """Return the lowercase words of a text; punctuation is dropped, "isn't" is one word."""
    return WORD.findall(text.lower())


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Share of different n-grams among all n-grams of a set of texts.

    N-grams never span two texts. The value falls as the set grows, so compare only sets of about
    the same size.

    Args:
        texts: the completions, in any order.
        n: words per n-gram, at least 1.

    Returns:
        Unique n-grams / all n-grams, in [0, 1]; 0.0 when no text has n words.

    Raises:
        ValueError: if n is below 1.

    Source: Li et al. 2016, arXiv:1510.03055 (distinct-1 and distinct-2).
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        grams = _ngrams(words(text), n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """Share of n-grams inside a text that repeat an earlier one, averaged over texts (seq-rep-n).

    Args:
        texts: the completions, in any order.
        n: words per n-gram, at least 1.

    Returns:
        Mean over texts of 1 - unique n-grams / n-grams, in [0, 1); a text of fewer than n words
        counts 0, and so does an empty set of texts.

    Raises:
        ValueError: if n is below 1.

    Source: Welleck et al. 2020, arXiv:1908.04319 (seq-rep-n, there over tokens).
    """
    shares: list[float] = []
    for text in texts:
        grams = _ngrams(words(text), n)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


def mean_length_words(texts: Sequence[str]) -> float:
    """Return the mean number of words a text; 0.0 for an empty set."""
    return sum(len(words(text)) for text in texts) / len(texts) if texts else 0.0


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 word")
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]

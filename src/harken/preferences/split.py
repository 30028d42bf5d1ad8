"""Train or held out: by a hash of the text, so that copies never stand on both sides."""

import hashlib
import unicodedata
from collections.abc import Iterable

from harken.records import RatedCompletion, Split


def normalized_text(text: str) -> str:
    """Return the text as the split sees it: NFKC, casefolded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of(text: str, *, heldout_fraction: float, seed: int) -> Split:
    """Say on which side a text falls.

    The side depends on the normalized text, the fraction and the seed, and on nothing else: adding
    data never moves a text, and a larger fraction only moves texts from "train" to "heldout".

    Args:
        text: a completion's text.
        heldout_fraction: expected share of held-out texts, in [0, 1].
        seed: another seed gives another split.
    """
    digest = hashlib.sha256(f"{seed}\n{normalized_text(text)}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "heldout" if position < heldout_fraction else "train"


def assign_splits(rated: Iterable[RatedCompletion], *, heldout_fraction: float, seed: int) -> list[RatedCompletion]:
    """Return the same rated completions, each with the split of its text."""
    return [
        item.model_copy(
            update={"split": split_of(item.completion.message.content, heldout_fraction=heldout_fraction, seed=seed)}
        )
        for item in rated
    ]

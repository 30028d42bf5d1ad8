"""Settings of `harken preferences`: judgments to preference pairs."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import Count, Fraction


class PreferencesConfig(Config):
    """Pairs from ratings, split so that no text is on both sides."""

    axis: str | None = None
    """Rating axis to use; may be left out when the judgments have one axis only."""
    min_difference: Annotated[float, Field(ge=0)] = 0.5
    """Texts whose mean ratings differ by less make no pair."""
    strength_cuts: tuple[float, float, float] = (1.0, 2.0, 3.0)
    """Differences of mean ratings at which the strength becomes 1, 2 and 3."""
    pairs_per_item: Count = 1
    """Pairs that one text may be part of, where pairs are drawn at random."""
    group_size: Annotated[int, Field(ge=2)] | None = None
    """Training texts are put into groups of so many and compared all with all (arXiv:2203.02155, section 3.5): one
    text is then read once for several pairs. None draws pairs at random. Held-out pairs always are."""
    max_pairs: Count | None = None
    """Upper bound of training pairs."""
    max_heldout_pairs: Count | None = None
    """Upper bound of held-out pairs."""
    heldout_fraction: Fraction = 0.1
    """Share of the texts kept out of all training."""
    soft_labels: bool = True
    """Label = share of rater pairs that prefer the chosen text; off: label 1."""
    prefix_words: Count = 3
    """A prompt made from a rated text is its first so many words; the policy writes the rest."""
    min_words: Count = 8
    """Texts of fewer words make no prompt."""
    seed: int = 0
    """Decides the split and the pairing."""

"""Settings of `harken preferences`: judgments to preference pairs."""

from typing import Annotated, Literal

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import Count, Fraction, Positive

NotNegative = Annotated[float, Field(ge=0)]
Judges = Literal["people", "models", "all"]


class MajorityConfig(Config):
    """The side with more votes wins; soft label (wins + 1) / (votes + 2), ties as half a win."""

    kind: Literal["majority"] = "majority"
    """How the votes on a pair become one outcome."""


class DawidSkeneConfig(Config):
    """Each judge errs in ways of their own, which their agreement with the others shows (Dawid and Skene 1979)."""

    kind: Literal["dawid_skene"] = "dawid_skene"
    """How the votes on a pair become one outcome."""
    one_coin: bool = False
    """One probability of being right a judge, in place of a table of confusions."""
    smoothing: NotNegative = 1.0
    """Pseudo-count of every kind of answer of a judge; 0 calls itself certain too soon."""
    diagonal: NotNegative = 2.0
    """Further pseudo-count of the right answer."""


class MaceConfig(Config):
    """Each judge looks, or answers by habit (Hovy et al. 2013): finds those who click without reading."""

    kind: Literal["mace"] = "mace"
    """How the votes on a pair become one outcome."""
    restarts: Count = 10
    """Searches from different starts; the likeliest is kept."""
    smoothing: Positive = 0.5
    """Pseudo-count of looking, of not looking, and of each answer of a habit."""


class BradleyTerryConfig(Config):
    """A score for each completion; soft labels are probabilities by the scores, drawn to 1/2 by their uncertainty."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    """How the votes on a pair become one outcome."""
    ties: Literal["half", "davidson", "rao_kupper"] = "half"
    """A tie is half a win of each, or an outcome with a parameter of its own (Davidson 1970, Rao and Kupper 1967)."""
    side: bool = False
    """Fit how far the completion shown first is preferred for that, and leave it out of the scores."""
    ridge: NotNegative = 0.5
    """Coefficient of the sum of squared scores: a normal prior with variance 1 / (2 ridge)."""


class ReliabilityConfig(Config):
    """Bradley-Terry with a factor and a side habit for each judge: finds the careless, the reversed, the one-sided."""

    kind: Literal["reliability"] = "reliability"
    """How the votes on a pair become one outcome."""
    ridge: Positive = 0.5
    """Coefficient of the sum of squared scores: a normal prior with variance 1 / (2 ridge)."""
    spread: Positive = 1.0
    """Standard deviation of the judges' factors around 1."""
    bias_spread: Positive = 1.0
    """Standard deviation of their side habits around 0, logits."""


class OrderedLogitConfig(Config):
    """Scores from how much better a completion was said to be; the fitted cut points become the pairs' margins."""

    kind: Literal["ordered_logit"] = "ordered_logit"
    """How the votes on a pair become one outcome."""
    side: bool = False
    """As for bradley_terry."""
    ridge: Positive = 0.5
    """Coefficient of the sum of squared scores: a normal prior with variance 1 / (2 ridge)."""


class PlackettLuceConfig(Config):
    """Scores from whole rankings (a comparison is one of two); inside a tie nothing is taken as known."""

    kind: Literal["plackett_luce"] = "plackett_luce"
    """How the votes on a pair become one outcome."""
    ridge: Positive = 0.5
    """Coefficient of the sum of squared scores: a normal prior with variance 1 / (2 ridge)."""


Resolve = Annotated[
    MajorityConfig
    | DawidSkeneConfig
    | MaceConfig
    | BradleyTerryConfig
    | ReliabilityConfig
    | OrderedLogitConfig
    | PlackettLuceConfig,
    Field(discriminator="kind"),
]


class PreferencesConfig(Config):
    """Pairs from comparisons, rankings and ratings, split so that no text is on both sides."""

    judges: Judges = "people"
    """Whose judgments count: people's (and those of imports that do not say whose they are), those of models and rules,
    or all alike."""
    resolve: Resolve = MajorityConfig()
    """How the votes of comparisons and rankings on a pair become its outcome; ratings are averaged."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs that end in a tie: left out, or kept for training with soft label 1/2 and strength 0."""
    both_bad: Literal["tie", "drop"] = "tie"
    """Whether "both bad" is a tie (neither is preferred) or no vote."""

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

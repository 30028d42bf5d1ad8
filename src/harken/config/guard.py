"""Settings of the guard, which ends a run of PPO whose scores can no longer be believed."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import Count, Fraction, Positive


class GuardConfig(Config):
    """What ends a run that goes wrong; the best policy it had is then given out."""

    empty_limit: Fraction | None = 0.5
    """Stop where more than this share of a rollout's completions hold no text, and an earlier rollout was far from the
    limits (by a factor of two); none: off."""
    length_limit: Positive | None = None
    """Stop where a rollout's mean completion has fewer tokens than this, and an earlier one was far from the limits;
    none: off."""
    window: Count = 5
    """Iterations whose completions a mean of the judge (`--judge`) is taken over."""
    alarm: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Chance that a run is stopped though its judge's mean never falls."""

"""Settings of NLPO's mask, an option of PPO."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import Count


class MaskConfig(Config):
    """The policy writes only tokens that an older copy of it finds likely (NLPO, arXiv:2210.01241)."""

    top_p: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The tokens left to it are the smallest set that has this mass under the copy."""
    inside_coef: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a term that moves the policy's mass to the tokens left to it. At 0, as in the code of RL4LMs, nothing
    holds the other tokens down, and they come back when the copy is renewed and in the saved model."""
    refresh_every: Count = 20
    """Iterations after which the copy becomes the policy of that moment."""

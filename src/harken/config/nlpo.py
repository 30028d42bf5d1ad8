"""Settings of NLPO's mask, an option of PPO."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import Count


class MaskConfig(Config):
    """Rollouts hold only tokens that an older copy of the policy finds likely (NLPO, arXiv:2210.01241)."""

    top_p: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The tokens that may be drawn are the smallest set that has this mass under the copy."""
    refresh_every: Count = 20
    """Iterations after which the copy becomes the policy of that moment."""

"""Settings of `harken generate` and `harken evaluate`."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import ChatConfig, ComputeConfig, Count, SamplingConfig


class GenerateConfig(Config):
    """`harken generate`: prompts to completions."""

    completions_per_prompt: Count = 1
    """Completions of each prompt."""
    batch_size: Count = 64
    """Completions drawn at the same time."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are drawn."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """Of a model trained by `harken ilql`: how much its Q counts; none: as much as it was trained to (its `beta`)."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device and precision."""
    seed: int = 0
    """Decides what is drawn."""


class BestOfConfig(GenerateConfig):
    """`harken generate --best-of`: of several completions drawn, one is kept."""

    best_of: Count = 16
    """Completions drawn for each one kept."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """0 keeps the best one; above, one is kept by lot in proportion to exp(score / beta), which with many draws comes
    near to the policy that maximizes E[score] - beta KL."""


class EvaluateConfig(GenerateConfig):
    """`harken evaluate`: two models on the same held-out prompts."""

    max_prompts: Count = 256
    """Use only this many prompts."""
    bootstrap_resamples: Count = 10_000
    """Resamples over prompts behind each interval."""

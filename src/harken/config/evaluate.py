"""Settings of `harken generate` and `harken evaluate`."""

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
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device and precision."""
    seed: int = 0
    """Decides what is drawn."""


class EvaluateConfig(GenerateConfig):
    """`harken evaluate`: two models on the same held-out prompts."""

    max_prompts: Count = 256
    """Use only this many prompts."""
    bootstrap_resamples: Count = 10_000
    """Resamples over prompts behind each interval."""

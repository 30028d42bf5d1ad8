"""Settings of reward-model training."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import (
    ChatConfig,
    ComputeConfig,
    Count,
    LoraConfig,
    OptimizerConfig,
    SamplingConfig,
    Tune,
)


class RewardConfig(Config):
    """`harken reward`: Bradley-Terry on preference pairs, one epoch (arXiv:2009.01325, 2307.09288)."""

    epochs: Count = 1
    """Passes over the pairs; more than one overfits (arXiv:2203.02155)."""
    batch_size: Count = 32
    """Pairs in one optimizer step."""
    max_length: Count = 512
    """Longest prompt plus completion, in tokens; longer ones are an error, never cut."""
    margins: tuple[float, float, float, float] = (0.0, 1 / 3, 2 / 3, 1.0)
    """Margin by strength 0-3 (Llama 2's small set); zeros switch it off."""
    soft_labels: bool = True
    """Use the pairs' soft labels; off: every label is 1."""
    centering: Annotated[float, Field(ge=0)] = 0.01
    """Coefficient of (chosen + rejected)^2, which keeps scores near 0 (arXiv:2312.09244)."""
    normalization_samples: Annotated[int, Field(ge=0)] = 256
    """Completions of the base model whose scores are moved to mean 0 and spread 1; 0 is off."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=32)
    """How those completions are drawn."""
    save_every: Count = 1
    """Optimizer steps between checkpoints; a kill loses at most so many."""
    tune: Tune = LoraConfig()
    """Adapters or all weights."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """Optimizer of adapter and head."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides data order and initialization."""

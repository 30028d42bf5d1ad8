"""Settings of rejection-sampling fine-tuning."""

from typing import Self

from pydantic import model_validator

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


class RftConfig(Config):
    """`harken rft`: draw many completions, keep the best by a reward, imitate them; once or in rounds."""

    rounds: Count = 1
    """Times that completions are drawn, by the model of the round before, and imitated."""
    completions_per_prompt: Count = 16
    """Completions drawn of each prompt."""
    keep: Count = 1
    """Best ones of each prompt that are imitated."""
    min_score: float | None = None
    """Completions that score less are never imitated; none: no limit."""
    earlier_rounds: bool = False
    """Imitate what was kept in earlier rounds, too (Llama 2, arXiv:2307.09288)."""
    sampling_batch_size: Count = 64
    """Completions drawn at the same time."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are drawn."""
    epochs: Count = 1
    """Passes over what was kept, in each round."""
    batch_size: Count = 32
    """Completions in one optimizer step."""
    max_length: Count = 1024
    """Longest prompt plus completion, in tokens."""
    save_every: Count = 1
    """Optimizer steps between checkpoints."""
    num_samples: Count = 4
    """Kept completions of each round in samples.jsonl."""
    tune: Tune = LoraConfig()
    """Adapters or all weights."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """Optimizer of the policy, begun anew in each round."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides sampling, data order and initialization."""

    @model_validator(mode="after")
    def _keeps_some(self) -> Self:
        if self.keep > self.completions_per_prompt:
            raise ValueError(
                f"keep = {self.keep} of completions_per_prompt = {self.completions_per_prompt}: there are not so many; "
                "lower keep or draw more"
            )
        return self

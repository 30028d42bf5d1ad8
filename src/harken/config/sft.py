"""Settings of supervised fine-tuning."""

from harken.config.base import Config
from harken.config.shared import (
    ChatConfig,
    ComputeConfig,
    Count,
    LoraConfig,
    OptimizerConfig,
    Tune,
)


class SftConfig(Config):
    """`harken sft`: imitate demonstrations; the loss counts completion tokens only."""

    epochs: Count = 1
    """Passes over the demonstrations."""
    max_demonstrations: Count | None = None
    """Use only this many (drawn by the seed)."""
    batch_size: Count = 32
    """Demonstrations in one optimizer step."""
    max_length: Count = 512
    """Longest prompt plus completion, in tokens; longer ones are an error, never cut."""
    packing: bool = True
    """Put several short demonstrations into one row; they do not see each other."""
    heldout_batches: Count = 4
    """Batches of held-out demonstrations whose loss is measured at the start and the end."""
    save_every: Count = 1
    """Optimizer steps between checkpoints; a kill loses at most so many."""
    tune: Tune = LoraConfig()
    """Adapters or all weights."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4)
    """Optimizer of the policy."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides data order and adapter initialization."""

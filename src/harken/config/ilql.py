"""Settings of ILQL: Q-learning on completions that others wrote."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import (
    ChatConfig,
    ComputeConfig,
    Count,
    Fraction,
    LoraConfig,
    OptimizerConfig,
    Tune,
)

Inside = Annotated[float, Field(gt=0, lt=1)]


class IlqlLossConfig(Config):
    """The four terms of ILQL (arXiv:2206.11871); defaults as in trlX unless said otherwise."""

    gamma: Fraction = 0.99
    """Discount per token."""
    expectile: Inside = 0.7
    """V learns this expectile of Q over the data's tokens: 0.5 is their mean, near 1 the best of them."""
    cql_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the term that lowers Q of tokens that the data lack."""
    awac_coef: Annotated[float, Field(ge=0)] = 1.0
    """Weight of imitating the data."""
    awac_beta: Annotated[float, Field(ge=0)] = 0.0
    """How much more tokens of high advantage are imitated; 0 imitates all alike."""
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share by which the target heads move to the heads at each of their updates; 0.001, the default of trlX, leaves
    them near their start in runs of a few thousand steps."""
    target_every: Count = 5
    """Optimizer steps between these updates."""


class IlqlConfig(Config):
    """`harken ilql`: learn what each token is worth from scored completions; write what is worth more."""

    epochs: Count = 1
    """Passes over the completions."""
    max_completions: Count | None = None
    """Use only this many training completions (drawn by the seed)."""
    batch_size: Count = 32
    """Completions in one optimizer step."""
    max_length: Count = 512
    """Longest prompt plus completion, in tokens; longer ones are an error, never cut."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """How much Q counts when the trained model writes: it draws from pi times exp(beta Q)."""
    head_width: Count | None = None
    """Width of the hidden layer of the heads; none is twice the model's, as in trlX. The two Q heads that are saved
    beside the model take 8 bytes x (width of the model + vocabulary) x this: 458 MB for smollm2, 51 MB with 128."""
    standardize_scores: bool = True
    """Move the training scores to mean 0 and spread 1."""
    loss: IlqlLossConfig = IlqlLossConfig()
    """Weights of the terms, discount, expectile."""
    save_every: Count = 1
    """Optimizer steps between checkpoints; a kill loses at most so many."""
    tune: Tune = LoraConfig()
    """Adapters or all weights of the policy; the heads always learn."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """Optimizer of the policy."""
    head_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    """Optimizer of the heads for Q and V."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides data order and initialization."""

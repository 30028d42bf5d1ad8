"""Settings that several stages have in common."""

from typing import Annotated, Literal

from pydantic import Field

from harken.config.base import Config

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
TopLayers = Annotated[int, Field(strict=True, ge=1)] | Annotated[float, Field(gt=0, lt=1)]
"""A number of layers, or a share of them; `harken.shapes.num_top_layers` says how many that is."""


class LoraConfig(Config):
    """Train low-rank adapters on the frozen base (arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"
    """Which way of training."""
    rank: Count = 16
    """Rank of each adapter."""
    alpha: Positive = 32.0
    """Adapter outputs are multiplied by alpha / rank."""
    top_layers: TopLayers | None = None
    """Only so many of the last transformer layers get adapters, or this share of all (0.5: the upper half); None is all
    of them. Nothing is computed backward through the layers below, and what they compute is the same for policy,
    reference and critic: PPO computes it once a rollout."""


class FullConfig(Config):
    """Train all weights: bf16 weights get fp32 masters."""

    kind: Literal["full"] = "full"
    """Which way of training."""


Tune = Annotated[LoraConfig | FullConfig, Field(discriminator="kind")]


class OptimizerConfig(Config):
    """AdamW with a warm-up and a decay, gradients clipped by global norm."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the running means of gradient and squared gradient."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    warmup_fraction: Fraction = 0.05
    """Share of all optimizer steps in which the rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls after the warm-up; linear and cosine end at 0."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Give out an exponential moving average of the weights instead of the last ones: at each optimizer step the
    average keeps this share of itself (arXiv:2203.02155, appendix C: 0.992), so it spans about 1 / (1 - ema_decay)."""


class ComputeConfig(Config):
    """Where and how the tensors live; none of it changes the result beyond rounding."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights and activations; auto takes bfloat16 where it is measured to be faster."""
    device: str = "auto"
    """`auto` takes a GPU when there is one, else the CPU; or `cpu`, `cuda`, `cuda:1`."""
    microbatch_tokens: Count = 2048
    """Upper bound of rows x padded length in one forward and backward pass."""
    scoring_tokens: Count = 4096
    """The same of a forward pass without gradients, which keeps nothing for a backward pass."""
    chunk_tokens: Count = 256
    """Tokens whose logits exist at the same time; on a CPU more were measured to be no faster."""


class SamplingConfig(Config):
    """How completions are drawn."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Logits are divided by it, in sampling and in scoring."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the smallest set of tokens with this mass; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k most likely tokens; 0 is off."""
    max_new_tokens: Count = 64
    """A completion that has not stopped by then ends with reason `length`."""


class ChatConfig(Config):
    """How conversations become text."""

    template: Literal["auto", "plain", "raw"] = "auto"
    """`auto`: the model's own chat template, else `plain`; `plain`: lines `User: ...` and `Assistant: ...`;
    `raw`: the messages' texts one after another, names of special tokens in them being these tokens, which they are in
    no other template."""
    stop: tuple[str, ...] = ()
    """Further tokens at which a completion ends, each the text of one token, as "\n"; beside the model's own."""

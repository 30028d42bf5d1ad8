"""Shapes of models, and the operations that a pass through one takes: pure arithmetic, no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harken.errors import ConfigError, DataError


@dataclass(frozen=True)
class ModelShape:
    """What decides a decoder's memory and time. Widths in numbers, not bytes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    is_tied: bool = False
    """Input and output embeddings are one matrix."""
    is_gated: bool = True
    """Three matrices in the feed-forward part (llama), not two (GPT-2)."""

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        """Width of all key heads; the values have the same."""
        return self.key_value_heads * self.head_size

    def matrices(self) -> Iterator[tuple[int, int]]:
        """Yield (input, output) width of every matrix of one layer."""
        yield from ((self.hidden, self.query_width), (self.query_width, self.hidden))
        yield from ((self.hidden, self.key_width),) * 2
        yield from ((self.hidden, self.intermediate),) * (2 if self.is_gated else 1)
        yield self.intermediate, self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Entries of one embedding matrix."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Entries of the matrices of all layers."""
        return self.layers * sum(width_in * width_out for width_in, width_out in self.matrices())

    @property
    def parameters(self) -> int:
        """All entries, up to biases."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.layer_parameters + norms + self.embedding_parameters * (1 if self.is_tied else 2)

    def adapter_parameters(self, rank: int) -> int:
        """Entries of one role's adapters."""
        return self.layers * rank * sum(width_in + width_out for width_in, width_out in self.matrices())


SIZES: dict[str, ModelShape] = {
    "smollm2": ModelShape(576, 1536, 30, 9, 3, 64, 49152, is_tied=True),
    "0.5B": ModelShape(896, 4864, 24, 14, 2, 64, 151936, is_tied=True),
    "1B": ModelShape(2048, 8192, 16, 32, 8, 64, 128256, is_tied=True),
    "3B": ModelShape(3072, 8192, 28, 24, 8, 128, 128256, is_tied=True),
    "7B": ModelShape(4096, 11008, 32, 32, 32, 128, 32000),
    "8B": ModelShape(4096, 14336, 32, 32, 8, 128, 128256),
    "13B": ModelShape(5120, 13824, 40, 40, 40, 128, 32000),
    "70B": ModelShape(8192, 28672, 80, 64, 8, 128, 128256),
}
"""Shapes of well-known models: SmolLM2-135M, Qwen2.5-0.5B, Llama 3.2 1B and 3B, Llama 2 7B and 13B, Llama 3 8B, 70B."""


def shape_from_config(config: Mapping[str, Any], where: str) -> ModelShape:
    """Return the shape that a model's config.json describes.

    Args:
        config: its keys; GPT-2's names are known too.
        where: the file or model, for the message.

    Raises:
        DataError: a size is missing; the message names it.
    """

    def size(*names: str, default: int | None = None) -> int:
        found = next((config[name] for name in names if config.get(name) is not None), default)
        if not isinstance(found, int):
            raise DataError(f"{where}: no {names[0]} in the config, which `plan` needs; give a size such as --model 7B")
        return found

    hidden, heads = size("hidden_size", "n_embd", "d_model"), size("num_attention_heads", "n_head")
    plain = {"gpt2", "gpt_neox", "gptj", "gpt_neo", "opt", "phi", "bloom", "falcon", "starcoder2", "codegen"}
    return ModelShape(
        hidden=hidden,
        intermediate=size("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        layers=size("num_hidden_layers", "n_layer"),
        heads=heads,
        key_value_heads=size("num_key_value_heads", default=heads),
        head_size=size("head_dim", default=hidden // heads),
        vocabulary=size("vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", config.get("model_type") == "gpt2")),
        is_gated=config.get("model_type") not in plain,
    )


def num_top_layers(top_layers: float | None, total: int) -> int:
    """Return how many of a model's layers get adapters: `top_layers` of `LoraConfig` is a number, a share, or all.

    Raises:
        ConfigError: the model has fewer.
    """
    if top_layers is None:
        return total
    if top_layers > total:
        raise ConfigError(f"top_layers is {top_layers}, the model has {total} layers; give at most so many")
    return int(top_layers) if top_layers >= 1 else max(1, round(top_layers * total))


def forward_flops(shape: ModelShape, positions: float, row_tokens: float, logit_tokens: float, rank: int = 0) -> float:
    """Return floating-point operations of a forward pass.

    Two for each entry of the layers' matrices and each position; four for each query entry and each position that it
    looks back on, (row_tokens + 1) / 2 on average; two for each entry of the output layer and each token whose logits
    are wanted. Norms, softmax and the like are left out.
    """
    matrices = shape.layer_parameters + (shape.adapter_parameters(rank) if rank else 0)
    attention = 4 * shape.layers * shape.query_width * (row_tokens + 1) / 2
    return positions * (2 * matrices + attention) + 2 * shape.embedding_parameters * logit_tokens


def training_flops(
    shape: ModelShape, positions: float, row_tokens: float, logit_tokens: float, *, tune: str, rank: int = 0
) -> float:
    """Return floating-point operations of a forward and backward pass, without what is computed a second time.

    The backward pass costs two forward passes, one for the inputs' gradients and one for the weights'; a frozen matrix
    needs the first only.
    """
    lora = rank if tune == "lora" else 0
    forward = forward_flops(shape, positions, row_tokens, logit_tokens, lora)
    if tune == "full":
        return 3 * forward
    frozen = 2 * positions * shape.layer_parameters + 2 * shape.embedding_parameters * logit_tokens
    return 3 * forward - frozen

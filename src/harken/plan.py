"""Memory and time of each phase, predicted from a model's shape: pure arithmetic, no torch.

Memory is what the phase holds at its worst moment, in bytes; `benchmarks/plan.py` checks it against measured runs. Time
is the larger of arithmetic over matrix rate and bytes over memory bandwidth. The formulas follow what `harken.lm` does:
one frozen base, roles with adapters or as full copies, logits of a few tokens at a time, AdamW with fp32 moments.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from harken.errors import DataError, UsageError

Phase = Literal["sampling", "scoring", "training"]
PHASES: tuple[Phase, ...] = ("sampling", "scoring", "training")

OVERHEAD_BYTES = {2: 130 * 10**6, 4: 64 * 10**6}
"""Tokenizer, code and scratch that a process has beyond the libraries it imported, by bytes of a weight.

Measured on a CPU: 30 to 80 MB in fp32, 90 to 190 MB in bf16, whose kernels are compiled while running.
"""

EFFICIENCY: dict[Phase, float] = {"sampling": 0.35, "scoring": 0.4, "training": 0.35}
"""Share of the matrix rate that a phase reaches on this project's test machine (`harken bench`)."""


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


@dataclass(frozen=True)
class Job:
    """What is to be run, one optimizer step or iteration of it."""

    tune: Literal["lora", "full"] = "lora"
    rank: int = 16
    """Of the adapters."""
    weight_bytes: int = 2
    """Bytes of a weight or activation: 2 for bfloat16, 4 for float32."""
    trained_roles: int = 2
    """Policy and critic; 1 for fine-tuning and for a reward model."""
    batch: int = 64
    """Rows of one step: completions, demonstrations, or sides of pairs."""
    step_rows: int | None = None
    """Rows of one optimizer step; None is all of the batch."""
    epochs: int = 1
    """Passes of training over those rows."""
    prompt_tokens: int = 64
    new_tokens: int = 64
    sampling_rows: int = 64
    """Rows drawn at the same time."""
    scoring_tokens: int = 8192
    """Positions of one forward pass without gradients."""
    microbatch_tokens: int = 2048
    """Positions of one forward and backward pass."""
    chunk_tokens: int = 128
    """Tokens whose logits exist at the same time."""
    plain_attention_up_to: int = 0
    """Longest row whose attention weights are kept for the backward pass; 0 where attention is always fused."""

    @property
    def row_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.new_tokens

    @property
    def training_positions(self) -> int:
        """Positions of one training pass: whole rows, at least one."""
        return min(self.rows_of_step, max(1, self.microbatch_tokens // self.row_tokens)) * self.row_tokens

    @property
    def rows_of_step(self) -> int:
        """Rows whose gradients are added up before an optimizer step."""
        return min(self.batch, self.step_rows or self.batch)


def resident_bytes(shape: ModelShape, job: Job) -> dict[str, int]:
    """Return what stays in memory through all phases, by name, in bytes."""
    trained = job.trained_roles * (shape.parameters if job.tune == "full" else shape.adapter_parameters(job.rank))
    has_masters = job.tune == "full" and job.weight_bytes < 4
    return {
        "base weights": shape.parameters * job.weight_bytes,
        "trained weights": trained * (job.weight_bytes if job.tune == "full" else 4),
        "fp32 masters": trained * 4 if has_masters else 0,
        "AdamW moments": trained * 8,
        "process": OVERHEAD_BYTES[job.weight_bytes],
    }


def kept_for_backward(shape: ModelShape, job: Job) -> int:
    """Return bytes that one position leaves behind in the forward pass for the backward pass, all layers together.

    For models built like llama, computed as `harken.lm.llama` does; others differ a little. A layer keeps: the fp32
    inputs of both norms; the norms' outputs (inputs of the projections); queries, keys and values as projected, queries
    and keys as rotated, what attention read; gate, up and what the last projection reads; each adapter's inner vector.
    Training all weights, the norms keep their normalized input too, in fp32. Plain attention keeps copies of queries,
    keys and values in place of the projections, and its weights, in fp32 and cast.
    """
    size, width = job.weight_bytes, shape.hidden
    is_plain = job.row_tokens <= job.plain_attention_up_to
    layer = 2 * 4 * width + 2 * size * width
    layer += size * (2 if is_plain else 3) * (shape.query_width + shape.key_width) + 4 * shape.heads
    layer += size * shape.intermediate * (3 if shape.is_gated else 2)
    if job.tune == "lora":
        layer += size * job.rank * sum(1 for _ in shape.matrices())
    else:
        layer += 2 * 4 * width
    if is_plain:
        layer += (4 + size) * shape.heads * job.row_tokens
    return layer * shape.layers


def joined_bytes(shape: ModelShape, job: Job) -> int:
    """Return bytes of what training joins anew in each pass: projections' weights, or a role's adapters."""
    inputs = shape.query_width + 2 * shape.key_width, 2 * shape.intermediate if shape.is_gated else 0
    if job.tune == "full":
        return job.weight_bytes * shape.layers * shape.hidden * sum(inputs)
    # The three adapters of queries, keys and values reach all their outputs, two those of gate and up.
    up = 3 * inputs[0] + 2 * inputs[1] + 2 * shape.hidden
    down = sum(width_in for width_in, _ in shape.matrices())
    return job.weight_bytes * shape.layers * job.rank * (up + down)


def working_bytes(shape: ModelShape, job: Job, phase: Phase) -> dict[str, int]:
    """Return what a phase needs beyond `resident_bytes` at its worst moment, by name, in bytes."""
    match phase:
        case "sampling":
            rows = min(job.sampling_rows, job.batch)
            cache = rows * job.row_tokens * 2 * shape.key_width * shape.layers * job.weight_bytes
            prefill = _one_layer(shape, job, rows * job.prompt_tokens)
            # Logits, their fp32 copy, log-probabilities and masses.
            drawing = rows * shape.vocabulary * (job.weight_bytes + 12)
            return {"key-value cache": cache, "pass": max(prefill, drawing)}
        case "scoring":
            rows = min(job.batch, max(1, job.scoring_tokens // job.row_tokens))
            # Logits, log-probabilities, and what their entropy is added up from, five tensors, all fp32.
            logits = 5 * 4 * min(job.chunk_tokens, rows * job.row_tokens) * shape.vocabulary
            return {"pass": max(_one_layer(shape, job, rows * job.row_tokens), logits)}
        case "training":
            return _training(shape, job)


def _one_layer(shape: ModelShape, job: Job, positions: int) -> int:
    """Return bytes of the widest moment of one layer without gradients, on top of the residual stream."""
    attention = 4 * shape.hidden + job.weight_bytes * (2 * shape.query_width + 2 * shape.key_width)
    feed_forward = job.weight_bytes * (shape.hidden + shape.intermediate * (3 if shape.is_gated else 2))
    return positions * (2 * job.weight_bytes * shape.hidden + max(attention, feed_forward))


def _training(shape: ModelShape, job: Job) -> dict[str, int]:
    positions = job.training_positions
    kept = positions * kept_for_backward(shape, job) + joined_bytes(shape, job)
    # Logits, log-probabilities and their gradient of one chunk, all fp32.
    logits = 3 * 4 * min(job.chunk_tokens, positions) * shape.vocabulary
    if job.tune == "lora":
        gradients = 4 * job.trained_roles * shape.adapter_parameters(job.rank)
        return {"gradients": gradients, "kept for backward": kept, "logits": logits}
    own = shape.parameters * job.weight_bytes
    several = job.rows_of_step * job.row_tokens > positions
    # Roles take turns in each microbatch, so a role finds the gradients that the others left.
    held = own * job.trained_roles if several else own * (job.trained_roles - 1)
    # The output layer's gradient, and the one being added to it.
    embeddings = 2 * shape.embedding_parameters * job.weight_bytes
    backward = held + max(kept + logits + embeddings, 0 if several else own + embeddings)
    # fp32 gradients for the masters, and AdamW's square roots of one role.
    casts = 4 * shape.parameters if job.weight_bytes < 4 else 0
    stepping = own * job.trained_roles + casts + 4 * shape.parameters
    if stepping >= backward:
        return {"gradients": own * job.trained_roles, "optimizer step": stepping - own * job.trained_roles}
    gradients = max(held, own)
    return {"gradients": gradients, "kept for backward": kept, "logits": backward - gradients - kept}


def peak_bytes(shape: ModelShape, job: Job, phase: Phase) -> int:
    """Return the predicted peak of a phase on one device, in bytes."""
    return sum(resident_bytes(shape, job).values()) + sum(working_bytes(shape, job, phase).values())


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


def step_bytes(shape: ModelShape, weight_bytes: int, rows: float, context: float) -> float:
    """Return bytes that one decoding step reads: all weights once, and the rows' keys and values so far."""
    weights = (shape.layer_parameters + shape.embedding_parameters) * weight_bytes
    return weights + rows * context * 2 * shape.key_width * shape.layers * weight_bytes


@dataclass(frozen=True)
class Device:
    """One accelerator, or the CPU of a machine."""

    memory: float
    """Bytes."""
    matrix_rate: float
    """Floating-point operations a second in the type of the weights."""
    bandwidth: float
    """Bytes a second from its memory."""
    efficiency: float | None = None
    """Share of the matrix rate reached; None takes `EFFICIENCY`."""


@dataclass(frozen=True)
class PhasePlan:
    """Prediction for one phase."""

    phase: Phase
    bytes: int
    """Peak on each device."""
    parts: dict[str, int]
    """What the peak is made of."""
    seconds: float
    """Of one step or iteration."""
    tokens_per_s: float
    """Completion tokens sampled, or positions scored or trained on, per second, all devices together."""
    fits: bool


def plan(
    shape: ModelShape, job: Job, device: Device, *, devices: int = 1, has_sampling: bool = True
) -> list[PhasePlan]:
    """Return memory and time of each phase.

    With several devices the rows are divided among them, and so are weights, gradients and optimizer state (as in fully
    sharded training); each device holds the activations of its own rows.

    Args:
        shape: of the model.
        job: one step; `batch` counts the rows of all devices.
        device: each of them.
        devices: how many.
        has_sampling: False leaves sampling and scoring out, as in fine-tuning.

    Raises:
        UsageError: no device.
    """
    if devices < 1:
        raise UsageError(f"{devices} devices; give at least one")
    own = replace(job, batch=math.ceil(job.batch / devices))
    found: list[PhasePlan] = []
    for phase in PHASES if has_sampling else PHASES[2:]:
        parts = {**resident_bytes(shape, own), **working_bytes(shape, own, phase)}
        for name in ("base weights", "trained weights", "fp32 masters", "AdamW moments", "gradients", "optimizer step"):
            if name in parts:
                parts[name] = math.ceil(parts[name] / devices)
        peak = sum(parts.values())
        seconds, tokens = _phase_seconds(shape, own, device, phase)
        rate = tokens * devices / seconds
        found.append(PhasePlan(phase, peak, parts, seconds, rate, peak <= device.memory))
    return found


def _phase_seconds(shape: ModelShape, job: Job, device: Device, phase: Phase) -> tuple[float, float]:
    """Return seconds and tokens of a phase on one device."""
    rate = device.matrix_rate * (EFFICIENCY[phase] if device.efficiency is None else device.efficiency)
    positions, logit_tokens = float(job.batch * job.row_tokens), float(job.batch * job.new_tokens)
    rank = job.rank if job.tune == "lora" else 0
    match phase:
        case "sampling":
            rows = min(job.sampling_rows, job.batch)
            rounds = job.batch / rows
            read = forward_flops(shape, rows * job.prompt_tokens, job.prompt_tokens, rows, rank) / rate
            context = job.prompt_tokens + job.new_tokens / 2
            arithmetic = forward_flops(shape, rows, 2 * context, rows, rank) / rate
            moving = step_bytes(shape, job.weight_bytes, rows, context) / device.bandwidth
            return rounds * (read + job.new_tokens * max(arithmetic, moving)), logit_tokens
        case "scoring":
            # Policy and reference with the output layer, critic and reward model without.
            flops = 2 * forward_flops(shape, positions, job.row_tokens, logit_tokens, rank)
            flops += 2 * forward_flops(shape, positions, job.row_tokens, 0, rank)
            return flops / rate, positions
        case "training":
            flops = training_flops(shape, positions, job.row_tokens, logit_tokens, tune=job.tune, rank=rank)
            if job.trained_roles > 1:
                others = training_flops(shape, positions, job.row_tokens, 0, tune=job.tune, rank=rank)
                flops += (job.trained_roles - 1) * others
            return job.epochs * flops / rate, job.epochs * positions

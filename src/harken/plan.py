"""Memory and time of each phase, predicted from a model's shape: pure arithmetic, no torch.

Memory is what the phase holds at its worst moment, in bytes; `benchmarks/plan.py` checks it against measured runs. Time
is the larger of arithmetic over matrix rate and bytes over memory bandwidth. The formulas follow what `harken.lm` does:
one frozen base, roles with adapters or as full copies, logits of a few tokens at a time, AdamW with fp32 moments.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from harken.errors import UsageError
from harken.shapes import ModelShape, forward_flops, num_top_layers, training_flops

Phase = Literal["sampling", "scoring", "training"]
PHASES: tuple[Phase, ...] = ("sampling", "scoring", "training")

OVERHEAD_BYTES = {2: 72 * 10**6, 4: 64 * 10**6}
"""Tokenizer, code and scratch that a process has beyond the libraries it imported, by bytes of a weight.

Measured on a CPU: 30 to 80 MB in fp32, 50 to 130 MB in bf16, whose kernels are compiled while running.
"""

EFFICIENCY: dict[Phase, float] = {"sampling": 0.35, "scoring": 0.4, "training": 0.35}
"""Share of the matrix rate that a phase reaches on this project's test machine (`harken bench`)."""


@dataclass(frozen=True)
class Job:
    """What is to be run, one optimizer step or iteration of it."""

    tune: Literal["lora", "full"] = "lora"
    rank: int = 16
    """Of the adapters."""
    top_layers: float | None = None
    """Layers that have adapters, from the last one on: their number, or a share below 1; None is all."""
    weight_bytes: int = 2
    """Bytes of a weight or activation: 2 for bfloat16, 4 for float32."""
    trained_roles: int = 2
    """Policy and critic; 1 where the critic is a head, for fine-tuning and for a reward model."""
    has_head_critic: bool = False
    """Whether PPO's critic is a head on the reference's states, which are kept for it."""
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
    chunk_tokens: int = 256
    """Tokens whose logits exist at the same time."""
    fp32_logits: int | None = None
    """Logits that are fp32 at the same time, where a CPU goes over some rows of a chunk; None = all of a chunk."""
    plain_attention_up_to: int = 0
    """Longest row whose attention weights are kept for the backward pass; 0 where attention is always fused."""
    packed_up_to: int = 0
    """Largest weights, in bytes, of which sampling makes a copy that is packed for the processor; 0 = of none."""

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


def _adapted(shape: ModelShape, job: Job) -> ModelShape:
    """Return the shape with those layers only that training goes backward through."""
    layers = shape.layers if job.tune == "full" else num_top_layers(job.top_layers, shape.layers)
    return replace(shape, layers=layers)


def _below(shape: ModelShape, job: Job) -> ModelShape:
    """Return the shape with the other layers, which no role changes."""
    return replace(shape, layers=shape.layers - _adapted(shape, job).layers)


def resident_bytes(shape: ModelShape, job: Job) -> dict[str, int]:
    """Return what stays in memory through all phases, by name, in bytes."""
    trained = job.trained_roles * (
        shape.parameters if job.tune == "full" else _adapted(shape, job).adapter_parameters(job.rank)
    )
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

    For models built like llama, computed as `harken.lm.llama` does; others differ a little. A layer keeps: the inputs
    of both norms and their outputs (inputs of the projections); queries, keys and values as projected, queries and keys
    as rotated, what attention read; gate, up and what the last projection reads; each adapter's inner vector. Plain
    attention keeps copies of queries, keys and values in place of the projections, and its weights, in fp32 and cast.
    """
    size, width = job.weight_bytes, shape.hidden
    is_plain = job.row_tokens <= job.plain_attention_up_to
    layer = 4 * size * width
    layer += size * (2 if is_plain else 3) * (shape.query_width + shape.key_width) + 4 * shape.heads
    layer += size * shape.intermediate * (3 if shape.is_gated else 2)
    if job.tune == "lora":
        layer += size * job.rank * sum(1 for _ in shape.matrices())
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
    states = job.batch * job.row_tokens * shape.hidden if job.has_head_critic else 0
    match phase:
        case "sampling":
            rows = min(job.sampling_rows, job.batch)
            cache = rows * job.row_tokens * 2 * shape.key_width * shape.layers * job.weight_bytes
            prefill = _one_layer(shape, job, rows * job.prompt_tokens)
            # Logits, their fp32 copy, log-probabilities and masses.
            drawing = rows * shape.vocabulary * (job.weight_bytes + 12)
            packs = shape.parameters * job.weight_bytes <= job.packed_up_to
            packed = (shape.layer_parameters + shape.embedding_parameters) * job.weight_bytes if packs else 0
            return {"key-value cache": cache, "packed weights": packed, "pass": max(prefill, drawing)}
        case "scoring":
            rows = min(job.batch, max(1, job.scoring_tokens // job.row_tokens))
            # Logits, and in fp32: they, log-probabilities, and what their entropy is added up from.
            logits = _logits(shape, job, rows * job.row_tokens, tensors=1, fp32_tensors=5)
            # The pass gives the critic's states in fp32, beside log-probabilities; then they are cast.
            kept = {"critic's states": states * (4 + job.weight_bytes)} if states else {}
            return {"pass": max(_one_layer(shape, job, rows * job.row_tokens), logits), **kept}
        case "training":
            kept = {"critic's states": states * job.weight_bytes} if states else {}
            return {**_training(shape, job), **kept}


def _one_layer(shape: ModelShape, job: Job, positions: int) -> int:
    """Return bytes of the widest moment of one layer without gradients, on top of the residual stream."""
    attention = 4 * shape.hidden + job.weight_bytes * (2 * shape.query_width + 2 * shape.key_width)
    feed_forward = job.weight_bytes * (shape.hidden + shape.intermediate * (3 if shape.is_gated else 2))
    return positions * (2 * job.weight_bytes * shape.hidden + max(attention, feed_forward))


def _logits(shape: ModelShape, job: Job, positions: int, *, tensors: int, fp32_tensors: int) -> int:
    """Return bytes of a chunk's logits: so many tensors in the type of the weights, and so many in fp32."""
    count = min(job.chunk_tokens, positions) * shape.vocabulary
    in_fp32 = count if job.fp32_logits is None else min(count, job.fp32_logits)
    return job.weight_bytes * tensors * count + 4 * fp32_tensors * in_fp32


def _training(shape: ModelShape, job: Job) -> dict[str, int]:
    positions, adapted = job.training_positions, _adapted(shape, job)
    kept = positions * kept_for_backward(adapted, job) + joined_bytes(adapted, job)
    # Logits and their gradient, and in fp32: logits, what the normalizer is added up from, the gradient.
    logits = _logits(shape, job, positions, tensors=2, fp32_tensors=3)
    if job.tune == "lora":
        gradients = 4 * job.trained_roles * adapted.adapter_parameters(job.rank)
        return {"gradients": gradients, "kept for backward": kept, "logits": logits}
    own = shape.parameters * job.weight_bytes
    several = job.rows_of_step * job.row_tokens > positions
    # Roles take turns in each microbatch, so a role finds the gradients that the others left.
    held = own * job.trained_roles if several else own * (job.trained_roles - 1)
    # The output layer's gradient, and the one being added to it.
    embeddings = 2 * shape.embedding_parameters * job.weight_bytes
    backward = held + max(kept + logits + embeddings, 0 if several else own + embeddings)
    # A role's gradients become fp32 ones, for its masters; the other roles' are there too.
    stepping = own * (job.trained_roles - 1) + 4 * shape.parameters
    if stepping >= backward:
        return {"gradients": own * (job.trained_roles - 1), "optimizer step": 4 * shape.parameters}
    gradients = max(held, own)
    return {"gradients": gradients, "kept for backward": kept, "logits": backward - gradients - kept}


def peak_bytes(shape: ModelShape, job: Job, phase: Phase) -> int:
    """Return the predicted peak of a phase on one device, in bytes."""
    return sum(resident_bytes(shape, job).values()) + sum(working_bytes(shape, job, phase).values())


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
        ConfigError: adapters on more layers than the model has.
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
            # The reference with the output layer; a critic that is trained and the reward model without. The policy's
            # log-probabilities are those of sampling, and what the lower layers give comes from there too, but for the
            # reward model, which reads texts of its own.
            upper, below = _adapted(shape, job), _below(shape, job)
            flops = forward_flops(upper, positions, job.row_tokens, logit_tokens, rank)
            flops += job.trained_roles * forward_flops(upper, positions, job.row_tokens, 0, rank)
            flops += forward_flops(below, positions, job.row_tokens, 0)
            return flops / rate, positions
        case "training":
            upper, below = _adapted(shape, job), _below(shape, job)
            flops = training_flops(upper, positions, job.row_tokens, logit_tokens, tune=job.tune, rank=rank)
            if job.trained_roles > 1:
                # PPO: what the lower layers give was computed in scoring.
                others = training_flops(upper, positions, job.row_tokens, 0, tune=job.tune, rank=rank)
                flops += (job.trained_roles - 1) * others
            else:
                flops += forward_flops(below, positions, job.row_tokens, 0)
            return job.epochs * flops / rate, job.epochs * positions

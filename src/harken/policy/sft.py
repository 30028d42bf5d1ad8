"""Supervised fine-tuning: imitate demonstrations. The loss counts completion tokens only."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from harken.artifacts import write_folder_manifest
from harken.config import IlqlConfig, SftConfig
from harken.core.sft_loss import completion_nll
from harken.errors import DataError, SelfTestError
from harken.lm.batch import PACKED_ROW, Batch, Tokens, pack, pad, shuffled_batches
from harken.lm.checkpoint import load_training, save_adapter, save_training
from harken.lm.export import export_role
from harken.lm.forward import completion_logprobs
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.speed import Meter
from harken.lm.trunk import Trunk
from harken.progress import QUIET, Reporter
from harken.records import Demonstration
from harken.runs import Run, Timer, derive_seed

ROLE = "policy"


def sft(
    model: str | Path,
    demonstrations: Sequence[Demonstration],
    out: Path,
    config: SftConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train a model on demonstrations and return the folder of the trained model.

    Args:
        model: folder, Hugging Face id, or `smollm2`.
        demonstrations: split `train` is learned, `heldout` only measured.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings; the defaults are recommended ones.
        inputs: names and paths of the demonstrations, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no demonstrations, or one longer than `max_length`.
        ResumeError: `out` was started with other settings.
    """
    config = config or SftConfig()
    run = Run(out, "sft", config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    config = with_settled_dtype(config, run)
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(ROLE, config.tune, seed=derive_seed(config.seed, "adapters"))
    train = encode(trunk, [item for item in demonstrations if item.split == "train"], config)
    heldout = encode(trunk, [item for item in demonstrations if item.split == "heldout"], config)
    check_stop_labels(trunk, train)
    subset = draw_subset(len(train), config.max_demonstrations, config.seed)
    batches = shuffled_batches(subset, config.batch_size, epochs=config.epochs, seed=config.seed)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, len(batches))
    if run.checkpoint_folder:
        load_training(run.checkpoint_folder, trunk, {ROLE: optimizer})
    meter = Meter(trunk, config.tune)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"loss {metrics['loss']:.3f}"

    steps = range(run.step, len(batches))
    for step in reporter.track(steps, "sft", total=len(batches), done=run.step, describe=describe):
        timer = Timer()
        batch = [train[index] for index in batches[step]]
        metrics = train_step(trunk, optimizer, batch, config)
        num_tokens = sum(item.size for item in batch)
        timer.measure("train", num_tokens)
        flops = meter.training(num_tokens, len(batch), sum(len(item.completion) for item in batch))
        if step == len(batches) - 1:
            optimizer.finish()
        if heldout and step in (0, len(batches) - 1):
            metrics["heldout_loss"] = mean_loss(trunk, heldout, config)
        run.log(step + 1, {**metrics, **timer.rates(), **meter.figures(timer, {"train": flops})})
        if (step + 1) % config.save_every == 0 and step + 1 < len(batches):
            run.save_checkpoint(step + 1, lambda folder: save_training(folder, trunk, {ROLE: optimizer}, {}))
    folder = save_policy(out, trunk, run, str(model))
    run.finish({"demonstrations": len(train), "optimizer_steps": optimizer.steps})
    return folder


def save_policy(out: Path, trunk: Trunk, run: Run, base: str) -> Path:
    """Write `out/model` (plain, merged, read back), and `out/adapter` where there is one; return the former."""
    export_role(out / "model", trunk, ROLE)
    write_folder_manifest(out / "model", "model", parents=run.inputs)
    if trunk.roles[ROLE].lora is not None:
        save_adapter(out / "adapter", trunk, ROLE, base)
    return out / "model"


def encode(trunk: Trunk, demonstrations: Sequence[Demonstration], config: SftConfig | IlqlConfig) -> list[Tokens]:
    """Return token ids of demonstrations; one that is too long is an error that names it."""
    limit = min(config.max_length, trunk.context_length)
    sequences: list[Tokens] = []
    for item in demonstrations:
        prompt = trunk.chat.encode_prompt(item.prompt, max_length=limit)
        tokens = Tokens(prompt, trunk.chat.encode_completion(item.completion.content))
        if tokens.size > limit:
            raise DataError(
                f"demonstration {item.id!r} has {tokens.size} tokens, the limit is {limit}; raise max_length (the "
                "model's context permitting) or shorten it: nothing is cut silently"
            )
        sequences.append(tokens)
    return sequences


def check_stop_labels(trunk: Trunk, sequences: Sequence[Tokens]) -> None:
    """Self-test: every demonstration ends with the token at which sampling stops."""
    if not sequences:
        raise DataError("no demonstrations with split 'train'; give at least one")
    for tokens in sequences:
        if tokens.completion[-1] not in trunk.chat.stop_ids:
            raise SelfTestError("a demonstration's labels lack the stop token: the model would never learn to stop")


def draw_subset(count: int, limit: int | None, seed: int) -> list[int]:
    """Return which of `count` items are learned: `limit` of them at random, or all, in random order."""
    order = list(range(count))
    random.Random(derive_seed(seed, "subset")).shuffle(order)
    return order[:limit]


def train_step(trunk: Trunk, optimizer: Optimizer, sequences: Sequence[Tokens], config: SftConfig) -> dict[str, float]:
    """Take one optimizer step on a batch; the loss is the mean over the batch's completion tokens."""
    whole = assemble(trunk, sequences, config)
    lengths = whole.lengths.tolist()
    groups = trunk.microbatches(lengths, config.compute.microbatch_tokens)
    denominator = whole.completion_mask.sum()
    loss = 0.0
    for rows in groups:
        part = whole.select(rows)
        logprobs = completion_logprobs(trunk, ROLE, part, chunk_tokens=config.compute.chunk_tokens).logprobs
        result = completion_nll(logprobs, part.completion_mask, denominator)
        torch.autograd.backward(result.loss)
        loss += float(result.loss.detach())
    rate = optimizer.learning_rate()
    norm = optimizer.step()
    return {
        "loss": loss,
        "grad_norm": norm,
        "lr": rate,
        "padding_waste": trunk.padding_waste(lengths, groups),
    }


@torch.no_grad()
def mean_loss(trunk: Trunk, sequences: Sequence[Tokens], config: SftConfig) -> float:
    """Return the mean loss per completion token of the first `heldout_batches` batches."""
    whole = assemble(trunk, sequences[: config.heldout_batches * config.batch_size], config)
    total = 0.0
    for rows in trunk.microbatches(whole.lengths.tolist(), config.compute.microbatch_tokens):
        part = whole.select(rows)
        logprobs = completion_logprobs(trunk, ROLE, part, chunk_tokens=config.compute.chunk_tokens).logprobs
        total -= float(logprobs.sum())
    return total / float(whole.completion_mask.sum())


def assemble(trunk: Trunk, sequences: Sequence[Tokens], config: SftConfig) -> Batch:
    """Return the sequences as one batch, packed into rows or one a row."""
    if not config.packing:
        return pad(sequences, trunk.device)
    longest = max(item.size for item in sequences)
    return pack(sequences, max(longest, PACKED_ROW), trunk.device)

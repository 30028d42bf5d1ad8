"""Direct preference optimization: train a policy on preference pairs, without a reward model.

The reference reads every pair once, before training; its log-probabilities are kept in the run folder, so that neither
later epochs nor a resumed run compute them again. Chosen and rejected share one row, and so their prompt's computation,
where the model allows it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harken.artifacts import write_json
from harken.config import DpoConfig, DpoLossConfig
from harken.core.aggregate import LossOutput
from harken.core.preference_loss import dpo_loss
from harken.errors import DataError, ResumeError, SelfTestError
from harken.estimates import wilson
from harken.lm.batch import Tokens, shared_size, shuffled_batches
from harken.lm.checkpoint import load_tensors, load_training, publish_tensors, save_training
from harken.lm.forward import TOLERANCE, can_share_prompts, group_logprobs
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.speed import Meter
from harken.lm.trunk import Trunk
from harken.policy.selftest import check_output_layer
from harken.policy.sft import ROLE, check_stop_labels, draw_subset, save_policy
from harken.progress import QUIET, Reporter
from harken.records import PreferencePair
from harken.runs import Run, Timer, derive_seed

REFERENCE_FILE = "reference.safetensors"

EncodedPair = tuple[Tokens, Tokens]
"""Chosen and rejected; both begin with the same prompt tokens."""


def dpo(
    model: str | Path,
    pairs: Sequence[PreferencePair],
    out: Path,
    config: DpoConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train a model on preference pairs and return the folder of the trained model.

    Args:
        model: policy and reference at the start, by folder, Hugging Face id, or `smollm2`; usually the SFT model.
        pairs: split `train` is learned, `heldout` only measured.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings; the defaults are recommended ones.
        inputs: names and paths of the pairs, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no training pairs, or one longer than `max_length`.
        ResumeError: `out` was started with other settings or pairs.
        SelfTestError: before the first update the policy is not the reference.
    """
    config = config or DpoConfig()
    run = Run(out, "dpo", config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    config = with_settled_dtype(config, run)
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(ROLE, config.tune, seed=derive_seed(config.seed, "adapters"))
    train = [pair for pair in pairs if pair.split == "train"]
    train = [train[index] for index in draw_subset(len(train), config.max_pairs, config.seed)]
    heldout = [pair for pair in pairs if pair.split == "heldout"]
    if not train:
        raise DataError("no pairs with split 'train'; give at least one")
    encoded = encode(trunk, [*train, *heldout], config)
    check_stop_labels(trunk, [side for pair in encoded for side in pair])
    check_output_layer(trunk)
    shared = can_share_prompts(trunk, max(encoded, key=shared_size))
    reference = reference_logprobs(trunk, encoded, config, run, shared=shared, reporter=reporter)
    batches = shuffled_batches(range(len(train)), config.batch_size, epochs=config.epochs, seed=config.seed)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, len(batches))
    if run.checkpoint_folder:
        load_training(run.checkpoint_folder, trunk, {ROLE: optimizer})
    meter = Meter(trunk, config.tune)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"loss {metrics['loss']:.3f}  right {metrics['accuracy']:.0%}"

    steps = range(run.step, len(batches))
    for step in reporter.track(steps, "dpo", total=len(batches), done=run.step, describe=describe):
        timer = Timer()
        batch = batches[step]
        tokens = [encoded[index] for index in batch]
        metrics = train_step(
            trunk, optimizer, [train[index] for index in batch], tokens, reference[batch], config, shared=shared
        )
        num_tokens = sum(side.size for pair in tokens for side in pair)
        timer.measure("train", num_tokens)
        if step == 0:
            check_start(trunk, metrics, tokens, config)
        flops = meter.training(
            num_tokens, 2 * len(tokens), sum(len(side.completion) for pair in tokens for side in pair)
        )
        run.log(step + 1, {**metrics, **timer.rates(), **meter.figures(timer, {"train": flops})})
        if (step + 1) % config.save_every == 0 and step + 1 < len(batches):
            run.save_checkpoint(step + 1, lambda folder: save_training(folder, trunk, {ROLE: optimizer}, {}))
    optimizer.use_average()
    evaluation: dict[str, Any] = {"num_pairs": 0}
    if heldout:
        before = reference[len(train) :]
        after = all_logprobs(trunk, ROLE, encoded[len(train) :], config, shared=shared)
        evaluation = examine(before, after, config)
    write_json(out / "evaluation.json", evaluation)
    folder = save_policy(out, trunk, run, str(model))
    run.finish({"pairs": len(train), "optimizer_steps": optimizer.steps, "shared_prompts": shared})
    return folder


def encode(trunk: Trunk, pairs: Sequence[PreferencePair], config: DpoConfig) -> list[EncodedPair]:
    """Return token ids of chosen and rejected; a pair that is too long is an error that names it."""
    limit = min(config.max_length, trunk.context_length)
    found: list[EncodedPair] = []
    for pair in pairs:
        prompt = trunk.chat.encode_prompt(pair.prompt, max_length=limit)
        chosen, rejected = (
            Tokens(prompt, trunk.chat.encode_completion(side.content)) for side in (pair.chosen, pair.rejected)
        )
        longest = max(chosen.size, rejected.size)
        if longest > limit:
            raise DataError(
                f"pair {pair.id!r} has {longest} tokens, the limit is {limit}; raise max_length (the model's context "
                "permitting) or leave the pair out: nothing is cut silently"
            )
        found.append((chosen, rejected))
    return found


def reference_logprobs(
    trunk: Trunk,
    encoded: Sequence[EncodedPair],
    config: DpoConfig,
    run: Run,
    *,
    shared: bool,
    reporter: Reporter = QUIET,
) -> Tensor:
    """Return (P, 2) fp32 on the CPU, summed log-probabilities of both sides under the reference.

    They are computed in the run's first minute, written into its folder, and read from there ever after.

    Raises:
        ResumeError: what lies in the folder belongs to another model or other pairs.
    """
    path = run.folder / REFERENCE_FILE
    told = json.dumps([run.inputs["model"], encoded])
    digest = torch.tensor(list(hashlib.sha256(told.encode()).digest()), dtype=torch.uint8)
    if not path.exists():
        found = all_logprobs(trunk, None, encoded, config, shared=shared, reporter=reporter)
        publish_tensors(path, {"logprobs": found, "sha256": digest})
    kept = load_tensors(path)
    if not torch.equal(kept["sha256"], digest):
        raise ResumeError(
            f"{path}: holds the reference's log-probabilities of other pairs, or of the pairs under another model or "
            "chat template; choose another --out, or delete the folder"
        )
    return kept["logprobs"]


@torch.no_grad()
def all_logprobs(
    trunk: Trunk,
    role: str | None,
    encoded: Sequence[EncodedPair],
    config: DpoConfig,
    *,
    shared: bool,
    reporter: Reporter = QUIET,
) -> Tensor:
    """Return (P, 2) fp32 on the CPU, summed log-probabilities of chosen and rejected under a role."""
    # Nothing is kept for a backward pass, so four times as many tokens fit.
    groups = trunk.microbatches(row_sizes(encoded, shared=shared), 4 * config.compute.microbatch_tokens)
    found = torch.zeros(len(encoded), 2)
    label = "reference" if role is None else "held-out"
    for number in reporter.track(range(len(groups)), label, total=len(groups)):
        rows = groups[number]
        some = [encoded[row] for row in rows]
        found[rows] = group_logprobs(trunk, role, some, shared=shared, chunk_tokens=config.compute.chunk_tokens).cpu()
    return found


def row_sizes(encoded: Sequence[EncodedPair], *, shared: bool) -> list[int]:
    """Return the computed positions of each pair: one row, or two that are as long as the longer one."""
    if shared:
        return [shared_size(pair) for pair in encoded]
    return [2 * max(chosen.size, rejected.size) for chosen, rejected in encoded]


def train_step(
    trunk: Trunk,
    optimizer: Optimizer,
    pairs: Sequence[PreferencePair],
    encoded: Sequence[EncodedPair],
    reference: Tensor,
    config: DpoConfig,
    *,
    shared: bool,
) -> dict[str, float]:
    """Take one optimizer step; the loss is the weighted mean over the batch's pairs.

    Args:
        trunk: holds the policy.
        optimizer: steps the policy.
        pairs: P of them, for labels and weights.
        encoded: their tokens.
        reference: (P, 2), log-probabilities of both sides under the reference.
        config: loss and sizes.
        shared: whether a pair is one row.
    """
    sizes = row_sizes(encoded, shared=shared)
    groups = trunk.microbatches(sizes, config.compute.microbatch_tokens)
    labels = torch.tensor([pair.soft_label if config.soft_labels else 1.0 for pair in pairs])
    weights = torch.tensor([pair.weight for pair in pairs])
    denominator = float(weights.sum())
    totals: dict[str, float] = {"loss": 0.0}
    for rows in groups:
        some = [encoded[row] for row in rows]
        logprobs = group_logprobs(trunk, ROLE, some, shared=shared, chunk_tokens=config.compute.chunk_tokens)
        there = logprobs.device
        result = pair_loss(
            config.loss,
            logprobs,
            reference[rows].to(there),
            labels_P=labels[rows].to(there),
            weights_P=weights[rows].to(there),
            denominator=denominator,
        )
        torch.autograd.backward(result.loss)
        totals["loss"] += float(result.loss.detach())
        for name, value in result.metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    rate = optimizer.learning_rate()
    norm = optimizer.step()
    held = sizes if shared else [chosen.size + rejected.size for chosen, rejected in encoded]
    computed = sum(len(group) * max(sizes[row] for row in group) for group in groups)
    return {**totals, "grad_norm": norm, "lr": rate, "padding_waste": 1.0 - sum(held) / computed}


def pair_loss(
    settings: DpoLossConfig,
    logprobs_P2: Tensor,
    reference_P2: Tensor,
    *,
    labels_P: Tensor,
    weights_P: Tensor,
    denominator: float,
) -> LossOutput:
    """Return the loss that the settings name, of (P, 2) log-probabilities of chosen and rejected."""
    match settings:
        case DpoLossConfig():
            noise = settings.label_smoothing
            return dpo_loss(
                *logprobs_P2.unbind(1),
                *reference_P2.unbind(1),
                beta=settings.beta,
                soft_labels_P=(1.0 - noise) * labels_P + noise * (1.0 - labels_P),
                weights_P=weights_P,
                denominator=denominator,
            )


def check_start(trunk: Trunk, metrics: Mapping[str, float], encoded: Sequence[EncodedPair], config: DpoConfig) -> None:
    """Self-test: in the first step, before any update, the policy is the reference.

    Raises:
        SelfTestError: the mean log-probability of a token differs by more than rounding.
    """
    tokens = sum(len(side.completion) for pair in encoded for side in pair) / (2 * len(encoded))
    moved = max(abs(metrics["chosen_reward"]), abs(metrics["rejected_reward"])) / config.loss.beta / tokens
    if not moved <= TOLERANCE[trunk.dtype]:
        raise SelfTestError(
            f"policy and reference differ by {moved:.2g} nats a token before any update, expected 0; the policy does "
            "not start as the reference, or dropout is on"
        )


def examine(before: Tensor, after: Tensor, config: DpoConfig) -> dict[str, Any]:
    """Return what `evaluation.json` holds of the held-out pairs.

    Args:
        before: (P, 2), log-probabilities of chosen and rejected under the reference.
        after: (P, 2), under the trained policy.
        config: for beta.
    """
    margins = config.loss.beta * ((after - before)[:, 0] - (after - before)[:, 1])
    return {
        "num_pairs": len(margins),
        "accuracy": share_above_zero(margins),
        "reward_margin": float(margins.mean()),
        "likelihood_accuracy_before": share_above_zero(before[:, 0] - before[:, 1]),
        "likelihood_accuracy": share_above_zero(after[:, 0] - after[:, 1]),
    }


def share_above_zero(differences_P: Tensor) -> dict[str, float | None]:
    """Return the share of values above zero, zeros half, with Wilson's interval at 95 %."""
    right = float((differences_P > 0).sum()) + 0.5 * float((differences_P == 0).sum())
    return wilson(right, len(differences_P)).as_dict()

"""Reward-model training: Bradley-Terry on preference pairs, one epoch, then normalization and an honest examination."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harken.artifacts import write_json
from harken.config import RewardConfig
from harken.core.reward_loss import bradley_terry_loss
from harken.core.rewards import fit_score_normalization
from harken.errors import DataError
from harken.lm.batch import Tokens, pad, shared_size, shuffled_batches
from harken.lm.checkpoint import load_training, save_training
from harken.lm.forward import can_share_prompts, group_scores, sequence_scores
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.sample import completion_seeds, sample
from harken.lm.speed import Meter
from harken.lm.trunk import Trunk
from harken.progress import QUIET, Reporter
from harken.records import PreferencePair, Prompt, SamplingSettings
from harken.reward.examine import examine
from harken.reward.model import ROLE, RewardModel
from harken.runs import Run, Timer, derive_seed

EncodedPair = tuple[Tokens, Tokens]
"""Chosen and rejected."""

PASS_TOKENS = 1024
"""Tokens of one forward pass; matrix products this large run at full speed."""

WORTH_SHARING = 0.13
"""Share of the pairs' tokens that must be repeated prompts before a row for both sides is faster, as measured."""


def train_reward(
    model: str | Path,
    pairs: Sequence[PreferencePair],
    out: Path,
    config: RewardConfig | None = None,
    *,
    prompts: Sequence[Prompt] = (),
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train a reward model and return its folder.

    Args:
        model: base, by folder, Hugging Face id, or `smollm2`; usually the SFT model.
        pairs: split `train` is learned, `heldout` only measured.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings; the defaults are recommended ones.
        prompts: the base answers these to fix the score's zero and unit; the pairs' own prompts by default.
        inputs: names and paths of pairs and prompts, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no training pairs, or one longer than `max_length`.
        ResumeError: `out` was started with other settings.
    """
    config = config or RewardConfig()
    run = Run(out, "reward", config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    config = with_settled_dtype(config, run)
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(ROLE, config.tune, seed=derive_seed(config.seed, "adapters"), head=True)
    reward = RewardModel(trunk, config.compute)
    train = [pair for pair in pairs if pair.split == "train"]
    heldout = [pair for pair in pairs if pair.split == "heldout"]
    if not train:
        raise DataError("no pairs with split 'train'; give at least one")
    encoded = [encode_pair(reward, pair, config) for pair in train]
    heldout_encoded = [encode_pair(reward, pair, config) for pair in heldout]
    shared = should_share(trunk, encoded)
    groups = [pair.group for pair in train]
    batches = shuffled_batches(
        range(len(train)), config.batch_size, epochs=config.epochs, seed=config.seed, groups=groups
    )
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, len(batches))
    if run.checkpoint_folder:
        load_training(run.checkpoint_folder, trunk, {ROLE: optimizer})
    meter = Meter(trunk, config.tune)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"loss {metrics['loss']:.3f}  right {metrics['accuracy']:.0%}"

    steps = range(run.step, len(batches))
    for step in reporter.track(steps, "reward", total=len(batches), done=run.step, describe=describe):
        timer = Timer()
        chosen_pairs = [train[index] for index in batches[step]]
        tokens = [encoded[index] for index in batches[step]]
        metrics = train_step(trunk, optimizer, chosen_pairs, tokens, config, shared=shared)
        sides = distinct_sides(tokens)
        num_tokens = sum(side.size for side in sides)
        timer.measure("train", num_tokens)
        flops = meter.training(num_tokens, len(sides), 0)
        run.log(step + 1, {**metrics, **timer.rates(), **meter.figures(timer, {"train": flops})})
        if (step + 1) % config.save_every == 0 and step + 1 < len(batches):
            run.save_checkpoint(step + 1, lambda folder: save_training(folder, trunk, {ROLE: optimizer}, {}))
    optimizer.finish()
    num_samples = normalize(reward, list(prompts) or unique_prompts(pairs), config)
    evaluation: dict[str, Any] = examine(reward, heldout, heldout_encoded) if heldout else {"num_pairs": 0}
    own = trunk.roles[ROLE]
    evaluation["normalization"] = {
        "gain": own.gain,
        "bias": own.bias,
        "num_samples": num_samples,
    }
    write_json(out / "evaluation.json", evaluation)
    facts = {"margins": config.margins, "heldout_accuracy": evaluation.get("accuracy")}
    reward.save(out / "model", facts, run.inputs)
    run.finish({"pairs": len(train), "optimizer_steps": optimizer.steps})
    return out / "model"


def encode_pair(reward: RewardModel, pair: PreferencePair, config: RewardConfig) -> EncodedPair:
    """Return token ids of both sides; a pair that is too long is an error that names it."""
    chosen = reward.encode(pair.prompt, pair.chosen.content)
    rejected = reward.encode(pair.prompt, pair.rejected.content)
    longest = max(chosen.size, rejected.size)
    if longest > config.max_length:
        raise DataError(
            f"pair {pair.id!r} has {longest} tokens, the limit is {config.max_length}; raise max_length or leave the "
            "pair out: nothing is cut silently"
        )
    return chosen, rejected


def train_step(
    trunk: Trunk,
    optimizer: Optimizer,
    pairs: Sequence[PreferencePair],
    encoded: Sequence[EncodedPair],
    config: RewardConfig,
    *,
    shared: bool = False,
) -> dict[str, float]:
    """Take one optimizer step; the loss is the weighted mean over the batch's pairs."""
    labels = torch.tensor([pair.soft_label if config.soft_labels else 1.0 for pair in pairs])
    margins = torch.tensor([config.margins[p.strength] if p.margin is None else p.margin for p in pairs])
    weights = torch.tensor([pair.weight for pair in pairs])
    denominator = float(weights.sum())
    totals: dict[str, float] = {"loss": 0.0}
    for rows in pair_microbatches(encoded, config.compute.microbatch_tokens):
        chosen, rejected = paired_scores(trunk, [encoded[row] for row in rows], shared=shared)
        index = torch.tensor(rows)
        result = bradley_terry_loss(
            chosen,
            rejected,
            soft_labels_P=labels[index].to(chosen.device),
            margins_P=margins[index].to(chosen.device),
            weights_P=weights[index].to(chosen.device),
            denominator=denominator,
            centering=config.centering,
        )
        torch.autograd.backward(result.loss)
        totals["loss"] += float(result.loss.detach())
        for name, value in result.metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    rate = optimizer.learning_rate()
    norm = optimizer.step()
    sizes = [shared_size(pair) for pair in encoded] if shared else [side.size for side in distinct_sides(encoded)]
    waste = trunk.padding_waste(sizes, trunk.microbatches(sizes, PASS_TOKENS))
    return {**totals, "grad_norm": norm, "lr": rate, "padding_waste": waste}


def should_share(trunk: Trunk, encoded: Sequence[EncodedPair]) -> bool:
    """Say whether both sides of a pair should stand in one row: prompts are long enough, and the model allows it."""
    apart = sum(side.size for side in distinct_sides(encoded))
    repeated = apart - sum(shared_size(pair) for pair in encoded)
    return repeated >= WORTH_SHARING * apart and can_share_prompts(trunk, max(encoded, key=shared_size))


def paired_scores(trunk: Trunk, encoded: Sequence[EncodedPair], *, shared: bool = False) -> tuple[Tensor, Tensor]:
    """Return scores (P,) of the chosen and (P,) of the rejected sides, differentiable.

    Where they do not share a row, a completion that is in several pairs is read once, and all are read in passes of
    similar length: the two sides of a pair often differ.
    """
    if shared:
        groups = trunk.microbatches([shared_size(pair) for pair in encoded], PASS_TOKENS)
        parts = [group_scores(trunk, ROLE, [encoded[row] for row in rows]) for rows in groups]
        order = torch.tensor([row for rows in groups for row in rows], device=trunk.device)
        chosen, rejected = torch.cat(parts)[order.argsort()].unbind(1)
        return chosen, rejected
    sides = distinct_sides(encoded)
    groups = trunk.microbatches([side.size for side in sides], PASS_TOKENS)
    parts = [sequence_scores(trunk, ROLE, pad([sides[row] for row in rows], trunk.device)) for rows in groups]
    order = torch.tensor([row for rows in groups for row in rows], device=trunk.device)
    scores = torch.cat(parts)[order.argsort()]
    place = {_key(side): row for row, side in enumerate(sides)}
    chosen, rejected = ([place[_key(pair[side])] for pair in encoded] for side in (0, 1))
    return scores[chosen], scores[rejected]


def pair_microbatches(encoded: Sequence[EncodedPair], max_tokens: int) -> list[list[int]]:
    """Cut a batch of pairs so that the completions of each part have at most `max_tokens`; one pair always fits.

    Pairs keep their order: those of one group, which share completions, stand side by side.
    """
    groups: list[list[int]] = []
    size = 0
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for row, pair in enumerate(encoded):
        more = sum(side.size for side in pair if _key(side) not in seen)
        if not groups or size + more > max_tokens:
            groups.append([])
            size, more, seen = 0, sum(side.size for side in pair), set()
        groups[-1].append(row)
        size += more
        seen |= {_key(side) for side in pair}
    return groups


def distinct_sides(encoded: Sequence[EncodedPair]) -> list[Tokens]:
    """Return the sides of pairs, each sequence once."""
    return list({_key(side): side for pair in encoded for side in pair}.values())


def _key(side: Tokens) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(side.prompt), tuple(side.completion)


def unique_prompts(pairs: Sequence[PreferencePair]) -> list[Prompt]:
    """Return the pairs' prompts, each once, in order of first appearance."""
    return list({pair.prompt.id: pair.prompt for pair in pairs}.values())


def normalize(reward: RewardModel, prompts: Sequence[Prompt], config: RewardConfig) -> int:
    """Set gain and bias so that scores of the base model's completions have mean 0 and spread 1 (OpenAI 2019).

    Returns: the number of completions drawn.
    """
    count = config.normalization_samples
    if count == 0:
        return 0
    trunk = reward.trunk
    settings = SamplingSettings(**config.sampling.model_dump())
    room = trunk.context_length - settings.max_new_tokens
    asked = [prompts[index % len(prompts)] for index in range(count)]
    ids = [trunk.chat.encode_prompt(prompt, max_length=room) for prompt in asked]
    seeds = completion_seeds(count, config.seed, "normalize")
    drawn = sample(trunk, None, ids, settings, seeds=seeds)
    sequences = [
        reward.encode(prompt, trunk.chat.decode_completion(item.token_ids))
        for prompt, item in zip(asked, drawn, strict=True)
    ]
    gain, bias = fit_score_normalization(reward.score_tokens(sequences))
    trunk.roles[ROLE].gain, trunk.roles[ROLE].bias = float(gain), float(bias)
    return count

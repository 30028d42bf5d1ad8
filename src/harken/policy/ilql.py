"""Implicit language Q-learning (arXiv:2206.11871): learn from scored completions what each token is worth.

Nothing is sampled. Heads on the policy's states learn Q (of each token) and V (of the text so far); the trained model
writes with its own logits plus beta times Q. Q is the lesser of two slow copies, the target heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harken.artifacts import write_folder_manifest, write_json
from harken.config import IlqlConfig
from harken.core.aggregate import LossOutput
from harken.core.ilql_loss import IlqlTensors, ilql_loss
from harken.core.logprobs import LogitsFn, token_logprobs
from harken.core.masking import last_true_index
from harken.errors import DataError
from harken.lm.batch import Batch, Tokens, pad, shuffled_batches
from harken.lm.checkpoint import load_tensors, load_training, save_adapter, save_tensors, save_training
from harken.lm.export import export_role
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.q_heads import QHeads, ValueHeads, at_completions, frozen_copy, save_guide, vocabulary
from harken.lm.speed import Meter
from harken.lm.trunk import Role, Trunk
from harken.policy.selftest import check_output_layer
from harken.policy.sft import check_stop_labels, draw_subset, encode
from harken.progress import QUIET, Reporter
from harken.records import ScoredDemonstration
from harken.runs import Run, Timer, derive_seed

POLICY, HEADS, TARGETS = "policy", "heads", "targets"
TARGETS_FILE = "targets.safetensors"


@dataclass
class IlqlState:
    """What `train_step` changes."""

    trunk: Trunk
    heads: ValueHeads
    targets: QHeads
    optimizers: dict[str, Optimizer]


@dataclass(frozen=True)
class Scored:
    """Tokens of the completions to learn from, and their scores as they are learned."""

    tokens: list[Tokens]
    scores: Tensor
    """(N,) fp32, standardized if the settings say so."""

    def select(self, rows: Sequence[int]) -> "Scored":
        """Return some of them."""
        return Scored([self.tokens[row] for row in rows], self.scores[list(rows)])


def ilql(
    model: str | Path,
    completions: Sequence[ScoredDemonstration],
    out: Path,
    config: IlqlConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train policy and Q heads on scored completions and return the folder of the trained model.

    Args:
        model: where the policy starts: folder, Hugging Face id, or `smollm2`.
        completions: split `train` is learned, `heldout` only measured.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings; the defaults are recommended ones.
        inputs: names and paths of the completions, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no training completions, one longer than `max_length`, or all of one score.
        ResumeError: `out` was started with other settings.
    """
    config = config or IlqlConfig()
    run = Run(out, "ilql", config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    config = with_settled_dtype(config, run)
    train = [item for item in completions if item.split == "train"]
    train = [train[index] for index in draw_subset(len(train), config.max_completions, config.seed)]
    steps = config.epochs * -(-len(train) // config.batch_size)
    state = prepare(model, config, steps, reporter)
    trunk = state.trunk
    learned, measured = read_scored(trunk, train, [item for item in completions if item.split == "heldout"], config)
    batches = shuffled_batches(range(len(train)), config.batch_size, epochs=config.epochs, seed=config.seed)
    if run.checkpoint_folder:
        load_training(run.checkpoint_folder, trunk, state.optimizers)
        trunk.load_state(TARGETS, load_tensors(run.checkpoint_folder / TARGETS_FILE))
    meter = Meter(trunk, config.tune)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"loss {metrics['loss']:.3f}  Q {metrics['q_mean']:+.2f}"

    def save(folder: Path) -> None:
        save_training(folder, trunk, state.optimizers, {})
        save_tensors(folder / TARGETS_FILE, trunk.state(TARGETS))

    for step in reporter.track(range(run.step, steps), "ilql", total=steps, done=run.step, describe=describe):
        timer = Timer()
        batch = learned.select(batches[step])
        metrics = train_step(state, batch, config, step=step)
        num_tokens = sum(item.size for item in batch.tokens)
        timer.measure("train", num_tokens)
        flops = meter.training(num_tokens, len(batch.tokens), sum(len(item.completion) for item in batch.tokens))
        run.log(step + 1, {**metrics, **timer.rates(), **meter.figures(timer, {"train": flops})})
        if (step + 1) % config.save_every == 0 and step + 1 < steps:
            run.save_checkpoint(step + 1, save)
    for optimizer in state.optimizers.values():
        optimizer.finish()
    write_json(out / "evaluation.json", examine(state, measured, config))
    folder = save_guided(out, state, run, str(model), config.beta)
    run.finish({"completions": len(train), "optimizer_steps": steps})
    return folder


def prepare(model: str | Path, config: IlqlConfig, steps: int, reporter: Reporter = QUIET) -> IlqlState:
    """Put base, policy and heads into memory; the target heads start as the heads.

    Args:
        model: where the policy starts.
        config: of ILQL.
        steps: optimizer steps of the whole run, for the schedules.
        reporter: shows what is loaded.
    """
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(POLICY, config.tune, seed=derive_seed(config.seed, POLICY))
    check_output_layer(trunk)
    seed, width = derive_seed(config.seed, HEADS), config.head_width
    heads = ValueHeads(trunk.hidden_size, vocabulary(trunk), seed, width).to(trunk.device)
    targets = frozen_copy(heads.q)
    trunk.roles[HEADS], trunk.roles[TARGETS] = Role(head=heads), Role(head=targets)
    optimizers = {
        POLICY: Optimizer(trunk.parameters(POLICY), config.optimizer, steps),
        HEADS: Optimizer(trunk.parameters(HEADS), config.head_optimizer, steps),
    }
    return IlqlState(trunk, heads, targets, optimizers)


def read_scored(
    trunk: Trunk, train: Sequence[ScoredDemonstration], heldout: Sequence[ScoredDemonstration], config: IlqlConfig
) -> tuple[Scored, Scored]:
    """Return tokens and scores of both splits; the zero and the unit of both are those of the training scores."""
    if not train:
        raise DataError("no scored completions with split 'train'; give at least two of different scores")
    scores = torch.tensor([item.score for item in train], dtype=torch.float64)
    spread = float(scores.std(unbiased=False))
    if not spread > 0:
        raise DataError(f"all {len(train)} completions have the score {train[0].score:g}; there is nothing to prefer")
    shift, unit = (float(scores.mean()), spread) if config.standardize_scores else (0.0, 1.0)
    sides = [
        Scored(encode(trunk, side, config), torch.tensor([(item.score - shift) / unit for item in side]))
        for side in (train, heldout)
    ]
    check_stop_labels(trunk, sides[0].tokens)
    return sides[0], sides[1]


def train_step(state: IlqlState, batch: Scored, config: IlqlConfig, *, step: int) -> dict[str, float]:
    """Take one optimizer step of policy and heads, now and then one of the target heads; losses are token means."""
    trunk = state.trunk
    totals, lengths, groups = _losses(state, batch, config, backward=True)
    rate = state.optimizers[POLICY].learning_rate()
    norms = {f"grad_norm_{role}": optimizer.step() for role, optimizer in state.optimizers.items()}
    if (step + 1) % config.loss.target_every == 0:
        state.targets.follow(state.heads.q, config.loss.target_rate)
    return {**totals, **norms, "lr": rate, "padding_waste": trunk.padding_waste(lengths, groups)}


def _losses(
    state: IlqlState, batch: Scored, config: IlqlConfig, *, backward: bool
) -> tuple[dict[str, float], list[int], list[list[int]]]:
    """Return loss and metrics of a batch, and how it was cut; with `backward` leave their gradients behind."""
    trunk = state.trunk
    whole = pad(batch.tokens, trunk.device)
    lengths = whole.lengths.tolist()
    groups = trunk.microbatches(lengths, config.compute.microbatch_tokens)
    denominator = float(whole.completion_mask.sum())
    totals: dict[str, float] = {"loss": 0.0}
    for rows in groups:
        result = batch_loss(state, whole.select(rows), batch.scores[rows].to(trunk.device), config, denominator)
        if backward:
            torch.autograd.backward(result.loss)
        totals["loss"] += float(result.loss.detach())
        for name, value in result.metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals, lengths, groups


def batch_loss(state: IlqlState, part: Batch, scores: Tensor, config: IlqlConfig, denominator: float) -> LossOutput:
    """Return the loss of some completions, whose scores (B,) are the rewards of their last tokens."""
    trunk, mask, settings = state.trunk, part.completion_mask, config.loss
    hidden = trunk.hidden(POLICY, part)
    rewards = scores.new_zeros(mask.shape).scatter(1, last_true_index(mask)[:, None], scores[:, None])
    chunk = config.compute.chunk_tokens

    def logprobs(output_layer: LogitsFn) -> Tensor:
        return token_logprobs(hidden, part.ids, mask, output_layer, chunk_tokens=chunk).logprobs

    read = IlqlTensors(
        q_values=[at_completions(head, hidden, part.ids, mask) for head in state.heads.q.both],
        q_logprobs=[logprobs(head) for head in state.heads.q.both],
        target_q_values=[at_completions(head, hidden.detach(), part.ids, mask) for head in state.targets.both],
        values=at_completions(state.heads.v, hidden, part.ids, mask),
        policy_logprobs=logprobs(trunk.logits_fn(POLICY)),
        rewards=rewards,
        completion_mask=mask,
    )
    return ilql_loss(
        read,
        gamma=settings.gamma,
        expectile=settings.expectile,
        cql_coef=settings.cql_coef,
        awac_coef=settings.awac_coef,
        awac_beta=settings.awac_beta,
        denominator=denominator,
    )


@torch.no_grad()
def examine(state: IlqlState, measured: Scored, config: IlqlConfig) -> dict[str, float]:
    """Return what `evaluation.json` holds of the held-out completions: their number, and the loss with its terms."""
    found: dict[str, float] = {"num_completions": len(measured.tokens)}
    return found | (_losses(state, measured, config, backward=False)[0] if measured.tokens else {})


def save_guided(out: Path, state: IlqlState, run: Run, base: str, beta: float) -> Path:
    """Write `out/model` (plain, merged, with the target heads beside it) and `out/adapter`; return the former."""
    export_role(out / "model", state.trunk, POLICY)
    save_guide(out / "model", state.targets, beta)
    write_folder_manifest(out / "model", "model", parents=run.inputs)
    if state.trunk.roles[POLICY].lora is not None:
        save_adapter(out / "adapter", state.trunk, POLICY, base)
    return out / "model"

"""Train a policy on preferences directly, without a reward model: DPO and its kin, in one loop.

The reference reads everything once, before training; its log-probabilities are kept in the run folder, so that neither
later epochs nor a resumed run compute them again. Chosen and rejected share one row, and so their prompt's computation,
where the model allows it. Losses differ in `preference_step.preference_loss` only; KTO learns from single completions
that are good or bad, and takes pairs apart.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from harken.artifacts import write_json
from harken.config import (
    CpoConfig,
    DpoConfig,
    IpoConfig,
    KtoConfig,
    KtoLossConfig,
    OrpoConfig,
    SimpoConfig,
    needs_reference,
)
from harken.errors import ResumeError
from harken.estimates import wilson
from harken.lm.batch import shared_size, shuffled_batches
from harken.lm.checkpoint import load_tensors, load_training, publish_tensors, save_training
from harken.lm.forward import can_share_prompts
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.speed import Meter
from harken.lm.trunk import Trunk
from harken.policy.best import best_so_far, go_back_to_best, keep_policy
from harken.policy.preference_data import Data, check_balance, encode, label_of, prepare
from harken.policy.preference_step import (
    Examples,
    Group,
    all_logprobs,
    check_start,
    measure,
    train_step,
)
from harken.policy.selftest import check_output_layer
from harken.policy.sft import ROLE, check_stop_labels, save_policy
from harken.progress import QUIET, Reporter
from harken.runs import Run, Timer, derive_seed

REFERENCE_FILE = "reference.safetensors"


def dpo(
    model: str | Path,
    data: Data,
    out: Path,
    config: DpoConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train a model on preferences and return the folder of the trained model.

    Args:
        model: policy and reference at the start, by folder, Hugging Face id, or `smollm2`; usually the SFT model.
        data: pairs, or (for the loss `kto`) labeled completions; split `train` is learned, `heldout` only measured.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings, among them which loss; the defaults are recommended ones.
        inputs: names and paths of the data, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: nothing to train on, something longer than `max_length`, or no pairs for a loss on pairs.
        ResumeError: `out` was started with other settings or data.
        SelfTestError: before the first update the policy is not the reference.
    """
    config = config or DpoConfig()
    run = Run(out, config.loss.kind, config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    config = with_settled_dtype(config, run)
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(ROLE, config.tune, seed=derive_seed(config.seed, "adapters"))
    train, heldout = prepare(data, config)
    check_balance(train, config.loss, reporter)
    groups = encode(trunk, [*train, *heldout], config)
    check_stop_labels(trunk, [group[0] for group in groups])
    check_output_layer(trunk)
    shared = can_share_prompts(trunk, max(groups, key=shared_size))
    first = 0 if needs_reference(config.loss) else len(train)
    read = reference_logprobs(trunk, groups[first:], config, run, shared=shared, reporter=reporter)
    whole = Examples(
        groups,
        torch.cat([torch.zeros(first, 2), read]),
        torch.tensor([label_of(item, config) for item in (*train, *heldout)]),
        torch.tensor([item.weight for item in (*train, *heldout)]),
        shared,
    )
    learned, measured = whole.select(range(len(train))), whole.select(range(len(train), len(groups)))
    batches = shuffled_batches(range(len(train)), config.batch_size, epochs=config.epochs, seed=config.seed)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, len(batches))
    if run.checkpoint_folder:
        load_training(run.checkpoint_folder, trunk, {ROLE: optimizer})
    elif needs_reference(config.loss):
        check_start(trunk, learned, config.compute)
    sides = 1 if isinstance(config.loss, KtoLossConfig) else 2
    meter = Meter(trunk, config.tune)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"loss {metrics['loss']:.3f}  right {metrics['accuracy']:.0%}"

    steps = range(run.step, len(batches))
    for step in reporter.track(steps, run.stage, total=len(batches), done=run.step, describe=describe):
        timer = Timer()
        batch = learned.select(batches[step])
        metrics = train_step(trunk, optimizer, batch, config)
        rows = [tokens for group in batch.groups for tokens in group[:sides]]
        num_tokens = sum(tokens.size for tokens in rows)
        timer.measure("train", num_tokens)
        flops = meter.training(num_tokens, len(rows), sum(len(tokens.completion) for tokens in rows))
        if measured.groups and is_measured(step, len(batches), config):
            metrics |= measure_heldout(trunk, measured, config)
            if config.keep_best and metrics["heldout_loss"] < best_so_far(run, math.inf):
                keep_policy(run, trunk, ROLE, step + 1, metrics["heldout_loss"])
        run.log(step + 1, {**metrics, **timer.rates(), **meter.figures(timer, {"train": flops})})
        if (step + 1) % config.save_every == 0 and step + 1 < len(batches):
            run.save_checkpoint(step + 1, lambda folder: save_training(folder, trunk, {ROLE: optimizer}, {}))
    optimizer.finish()
    info = back_to_lowest(run, trunk, reporter) if config.keep_best and measured.groups else {}
    write_json(out / "evaluation.json", examine(trunk, measured, config))
    folder = save_policy(out, trunk, run, str(model))
    kept = "completions" if isinstance(config.loss, KtoLossConfig) else "pairs"
    run.finish({kept: len(train), "optimizer_steps": optimizer.steps, "shared_prompts": shared, **info})
    return folder


class PreferenceStage(Protocol):
    """The signature that `dpo` and its kin share."""

    def __call__(
        self,
        model: str | Path,
        data: Data,
        out: Path,
        config: DpoConfig | None = None,
        *,
        inputs: Mapping[str, Path | str] | None = None,
        reporter: Reporter = QUIET,
    ) -> Path:
        """Train a model on preferences and return the folder of the trained model."""
        ...


def _with_settings(name: str, usual: type[DpoConfig]) -> PreferenceStage:
    """Return `dpo` with other settings as its default."""

    def stage(
        model: str | Path,
        data: Data,
        out: Path,
        config: DpoConfig | None = None,
        *,
        inputs: Mapping[str, Path | str] | None = None,
        reporter: Reporter = QUIET,
    ) -> Path:
        return dpo(model, data, out, config or usual(), inputs=inputs, reporter=reporter)

    stage.__name__ = stage.__qualname__ = name
    stage.__doc__ = f"Train as `dpo` does, by default with the settings of `{usual.__name__}`."
    return stage


ipo = _with_settings("ipo", IpoConfig)
simpo = _with_settings("simpo", SimpoConfig)
orpo = _with_settings("orpo", OrpoConfig)
cpo = _with_settings("cpo", CpoConfig)
kto = _with_settings("kto", KtoConfig)


def reference_logprobs(
    trunk: Trunk,
    groups: Sequence[Group],
    config: DpoConfig,
    run: Run,
    *,
    shared: bool,
    reporter: Reporter = QUIET,
) -> Tensor:
    """Return (P, 2) fp32 on the CPU, summed log-probabilities of both completions under the reference.

    They are computed in the run's first minute, written into its folder, and read from there ever after.

    Raises:
        ResumeError: what lies in the folder belongs to another model or other data.
    """
    path = run.folder / REFERENCE_FILE
    told = json.dumps([run.inputs["model"], groups])
    digest = torch.tensor(list(hashlib.sha256(told.encode()).digest()), dtype=torch.uint8)
    if not path.exists():
        found = all_logprobs(trunk, None, groups, config.compute, shared=shared, label="reference", reporter=reporter)
        publish_tensors(path, {"logprobs": found, "sha256": digest})
    kept = load_tensors(path)
    if not torch.equal(kept["sha256"], digest):
        raise ResumeError(
            f"{path}: holds the reference's log-probabilities of other pairs, or of the pairs under another model or "
            "chat template; choose another --out, or delete the folder"
        )
    return kept["logprobs"]


def is_measured(step: int, num_steps: int, config: DpoConfig) -> bool:
    """Say whether the held-out loss is measured after a step, counted from 0."""
    every = config.heldout_every
    return every is not None and ((step + 1) % every == 0 or step + 1 == num_steps)


def measure_heldout(trunk: Trunk, examples: Examples, config: DpoConfig) -> dict[str, float]:
    """Return loss and accuracy on the held-out examples."""
    logprobs = all_logprobs(trunk, ROLE, examples.groups, config.compute, shared=examples.shared)
    found = measure(logprobs, examples, config.loss)
    return {"heldout_loss": found["loss"], "heldout_accuracy": found["accuracy"]}


def back_to_lowest(run: Run, trunk: Trunk, reporter: Reporter) -> dict[str, int]:
    """Set the policy to the one with the lowest held-out loss and return its step."""
    step, loss = go_back_to_best(run, trunk, ROLE)
    reporter.say(f"kept the policy of step {step}, whose held-out loss is lowest: {loss:.4f}")
    return {"best_step": step}


def examine(trunk: Trunk, examples: Examples, config: DpoConfig) -> dict[str, Any]:
    """Return what `evaluation.json` holds of the held-out examples; each counts as one, whatever its weight."""
    count = len(examples.groups)
    name = "num_completions" if isinstance(config.loss, KtoLossConfig) else "num_pairs"
    if not count:
        return {name: 0}
    after = all_logprobs(trunk, ROLE, examples.groups, config.compute, shared=examples.shared, label="held-out")
    return {name: count, **examined(after, examples, config)}


def examined(after: Tensor, examples: Examples, config: DpoConfig) -> dict[str, Any]:
    """Return the figures of held-out examples.

    Args:
        after: (P, 2), log-probabilities under the trained policy.
        examples: P of them; their reference is the model before training.
        config: which loss, and so which reward.
    """
    count, before = len(examples.groups), examples.reference
    equal = Examples(examples.groups, before, examples.labels, torch.ones(count), examples.shared)
    found = measure(after, equal, config.loss)
    result: dict[str, Any] = {
        "accuracy": wilson(found["accuracy"] * count, count).as_dict(),
        "reward_margin": found["reward_margin"],
    }
    if isinstance(config.loss, KtoLossConfig):
        return result
    return {
        **result,
        "likelihood_accuracy_before": share_above_zero(before[:, 0] - before[:, 1]),
        "likelihood_accuracy": share_above_zero(after[:, 0] - after[:, 1]),
    }


def share_above_zero(differences_P: Tensor) -> dict[str, float | None]:
    """Return the share of values above zero, zeros half, with Wilson's interval at 95 %."""
    right = float((differences_P > 0).sum()) + 0.5 * float((differences_P == 0).sum())
    return wilson(right, len(differences_P)).as_dict()

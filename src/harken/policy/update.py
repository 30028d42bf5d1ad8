"""One step's learning: epochs of minibatches over a rollout, for PPO and its kin alike."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from harken.config import (
    AdaptiveKl,
    CispoLossConfig,
    GspoLossConfig,
    PolicyLoss,
    PpoConfig,
    PpoLossConfig,
    ReinforceLossConfig,
)
from harken.core.aggregate import LossOutput, masked_sum, row_weights
from harken.core.group_advantages import groups_with_equal_rewards
from harken.core.kl import adaptive_kl_coef, kl_k1, kl_k3, kl_loss_terms
from harken.core.moments import Moments, denormalize, normalize, rescaled_head, update_moments
from harken.core.policy_loss import adaptive_entropy_coef, entropy_bonus, ppo_policy_loss
from harken.core.sequence_loss import cispo_policy_loss, gspo_policy_loss, reinforce_policy_loss
from harken.core.value_loss import clipped_value_loss, explained_variance
from harken.lm.batch import Batch
from harken.lm.forward import completion_logprobs, completion_values
from harken.lm.optim import Optimizer
from harken.lm.samplers import Sampler
from harken.lm.trunk import Trunk
from harken.policy.head_critic import HeadCritic
from harken.policy.nlpo import outside_loss
from harken.policy.ptx import PtxMix
from harken.policy.rollout import CRITIC, POLICY, Rollout
from harken.policy.selftest import check_first_update
from harken.policy.targets import Targets, make_rewards, make_targets, weighted_for_sampler
from harken.runs import derive_seed

MAX_ENTROPY_COEF = 20
"""Largest coefficient of a targeted entropy bonus, as a multiple of `entropy_change`."""


@dataclass
class PpoState:
    """What `update` changes: roles of the trunk, their optimizers, coefficients; and who draws."""

    trunk: Trunk
    optimizers: dict[str, Optimizer]
    kl_coef: float
    sampler: Sampler
    entropy_coef: float = 0.0
    moments: Moments = field(default_factory=Moments)
    """Of the returns, where values are normalized."""
    critic_is_random: bool = False
    """Whether its head knew nothing at the start, so that its first values need not be preserved."""
    head_critic: HeadCritic | None = None
    """A critic that is fitted, not trained; it has no optimizer."""
    ptx: PtxMix | None = None

    @property
    def learners(self) -> dict[str, Optimizer | HeadCritic]:
        """What a checkpoint keeps of each role that learns, beside its weights."""
        fitted = {} if self.head_critic is None else {CRITIC: self.head_critic}
        return {**self.optimizers, **fitted}

    def numbers(self) -> dict[str, float | list[float]]:
        """Return what a checkpoint keeps beside weights and optimizers."""
        return {"kl_coef": self.kl_coef, "entropy_coef": self.entropy_coef, "moments": list(self.moments)}

    def set_numbers(self, numbers: dict[str, float | list[float]]) -> None:
        """Go on from `numbers` of a checkpoint."""
        match numbers:
            case {"kl_coef": float(kl), "entropy_coef": float(entropy), "moments": [weight, mean, square]}:
                self.kl_coef, self.entropy_coef = kl, entropy
                self.moments = Moments(weight, mean, square)
            case _:
                raise ValueError(f"state.json of the checkpoint has {sorted(numbers)}, expected {list(self.numbers())}")


def update(
    state: PpoState,
    experience: Rollout,
    scores: Tensor,
    config: PpoConfig,
    *,
    step: int,
    baseline: Tensor | None = None,
) -> dict[str, float]:
    """Learn from one rollout: rewards, advantages, then epochs of minibatches; return the step's metrics.

    Args:
        state: changed in place.
        experience: of the current policy.
        scores: (B,) what the reward gave, or (B, S) for each token.
        config: of PPO.
        step: decides the order of the minibatches together with the seed.
        baseline: (B,), scores of the greedy completions (`score_greedy`), for ReMax.
    """
    mask = experience.batch.completion_mask
    rewards = make_rewards(experience, scores, config, state.kl_coef)
    if config.value.normalize:
        experience = replace(experience, values=denormalize(experience.values, state.moments) * mask)
    targets = make_targets(experience, rewards, config, baseline)
    value_fit = {}
    if config.has_critic:
        value_fit = {"explained_variance": float(explained_variance(experience.values, targets.returns, mask))}
    if state.head_critic is not None:
        assert experience.critic_states is not None, "a rollout keeps the states of a head"
        value_fit |= state.head_critic.fit(experience.critic_states, targets.returns, mask)
    if config.value.normalize:
        targets = with_normalized_values(state, targets, mask, config)
    targets, weighing = weighted_for_sampler(targets, experience, config)
    metrics = run_epochs(state, experience, targets, config, step=step)
    mismatch = {"sampler_mismatch": metrics.pop("moved")}
    metrics |= mismatch | rollout_metrics(experience, scores, rewards, state.kl_coef) | weighing | value_fit
    if config.needs_group:
        totals = scores if scores.ndim == 1 else scores.sum(dim=1)
        equal = groups_with_equal_rewards(totals, config.completions_per_prompt)
        metrics["groups_equal"] = float(equal.float().mean())
    if config.loss.entropy_target is not None:
        metrics["entropy_coef"] = state.entropy_coef
    move_coefficients(state, metrics, config, num_episodes=len(scores))
    return metrics


def run_epochs(
    state: PpoState, experience: Rollout, targets: Targets, config: PpoConfig, *, step: int
) -> dict[str, float]:
    """Take the update's optimizer steps and return their mean metrics.

    `moved` is of the first step alone: the policy has not learned yet, so there the training pass and the old
    log-probabilities differ by what two computations of them do.
    """
    num_rows = experience.batch.num_rows
    per_epoch = -(-num_rows // config.minibatch_size)
    is_warming_up = step < config.value.warmup_steps
    totals: dict[str, float] = {}
    metrics: dict[str, float] = {}
    count = epochs_run = 0
    first_moved = 0.0
    for epoch in range(config.epochs):
        epochs_run += 1
        order = list(range(num_rows))
        random.Random(derive_seed(config.seed, "minibatches", step, epoch)).shuffle(order)
        for start in range(0, num_rows, config.minibatch_size):
            rows = order[start : start + config.minibatch_size]
            metrics = minibatch_step(state, experience, targets, rows, config, train_policy=not is_warming_up)
            if step == 0 and count == 0:
                check_first_update(state.trunk, metrics)
            moved = metrics.pop("moved")
            first_moved = moved if count == 0 else first_moved
            count += 1
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value
            if metrics["ratio_stops"]:
                break
        too_far = config.approx_kl_limit is not None and metrics["approx_kl"] > config.approx_kl_limit
        if too_far or metrics["ratio_stops"]:
            break
    if not totals["ratio_stops"]:
        assert count == epochs_run * per_epoch, f"{count} optimizer steps, planned {epochs_run * per_epoch}"
    means = {name: value / count for name, value in totals.items()}
    # At most one minibatch stops an update.
    means["ratio_stops"] = totals["ratio_stops"]
    last = {"approx_kl_last": metrics["approx_kl"], "moved": first_moved}
    return {**means, "epochs_run": float(epochs_run), **last}


def with_normalized_values(state: PpoState, targets: Targets, mask: Tensor, config: PpoConfig) -> Targets:
    """Return targets in units of the returns' new moments, in which the critic's head speaks from now on."""
    old, new = state.moments, update_moments(state.moments, targets.returns, mask, decay=config.value.normalize_decay)
    state.moments = new
    returns = normalize(targets.returns, new) * mask
    if old.weight == 0 and state.critic_is_random:
        # Preserved, the values near 0 of a random head would be far below or above all returns.
        return replace(targets, returns=returns)
    head = state.trunk.roles[CRITIC].head
    assert isinstance(head, nn.Linear), "a critic has a linear head"
    weight, bias = rescaled_head(head.weight.detach(), head.bias.detach(), old, new)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return replace(targets, returns=returns, old_values=normalize(targets.old_values, new) * mask)


def move_coefficients(state: PpoState, metrics: dict[str, float], config: PpoConfig, *, num_episodes: int) -> None:
    """Move the KL and entropy coefficients of the next step toward their targets."""
    if isinstance(config.kl, AdaptiveKl):
        state.kl_coef = adaptive_kl_coef(
            state.kl_coef,
            metrics["kl_sequence"],
            target=config.kl.target,
            horizon=config.kl.horizon,
            num_episodes=num_episodes,
            lower=config.kl.coef / config.kl.bound,
            upper=config.kl.coef * config.kl.bound,
        )
    loss = config.loss
    if loss.entropy_target is not None:
        state.entropy_coef = adaptive_entropy_coef(
            state.entropy_coef,
            metrics["entropy"],
            target=loss.entropy_target,
            change=loss.entropy_change,
            upper=MAX_ENTROPY_COEF * loss.entropy_change,
        )


def minibatch_step(
    state: PpoState,
    experience: Rollout,
    targets: Targets,
    rows: Sequence[int],
    config: PpoConfig,
    *,
    train_policy: bool = True,
) -> dict[str, float]:
    """Take one optimizer step of policy and critic; losses are means over the minibatch's completion tokens."""
    trunk, batch = state.trunk, experience.batch
    lengths = batch.lengths.tolist()
    groups = trunk.microbatches([lengths[row] for row in rows], config.compute.microbatch_tokens)
    chosen_mask = batch.completion_mask[torch.tensor(rows, device=batch.ids.device)]
    denominator = float(chosen_mask.sum())
    weights = row_weights(chosen_mask, config.loss.aggregation, length=config.sampling.max_new_tokens)
    totals: dict[str, float] = {}
    for group in groups:
        chosen = [rows[index] for index in group]
        part = Minibatch(
            batch.select(chosen), torch.tensor(chosen, device=batch.ids.device), weights[group], denominator
        )
        with torch.set_grad_enabled(train_policy):
            found = policy_terms(state, experience, targets, part, config)
        if train_policy:
            torch.autograd.backward(found.loss)
        metrics = found.metrics
        if CRITIC in state.optimizers:
            value = value_terms(state, experience, targets, part, config)
            torch.autograd.backward(value.loss)
            metrics = metrics | value.metrics
        for name, share in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(share.detach())
    limit = config.loss.ratio_limit
    totals["ratio_stops"] = float(limit is not None and totals["ratio"] > limit)
    if train_policy and state.ptx is not None and not totals["ratio_stops"]:
        totals |= state.ptx.add_gradients(trunk, state.optimizers[POLICY])
    totals["lr"] = state.optimizers[POLICY].learning_rate()
    for role, optimizer in state.optimizers.items():
        if totals["ratio_stops"] or (role == POLICY and not train_policy):
            optimizer.clear()
            totals[f"grad_norm_{role}"] = 0.0
        else:
            totals[f"grad_norm_{role}"] = optimizer.step()
    return {**totals, "padding_waste": trunk.padding_waste([lengths[row] for row in rows], groups)}


@dataclass(frozen=True)
class Minibatch:
    """Some rows of a rollout in one forward and backward pass."""

    batch: Batch
    index: Tensor
    """(b,) long, the rows' places in the rollout."""
    weights: Tensor
    """(b, 1), `row_weights` of the aggregation."""
    denominator: float
    """Completion tokens of the whole optimizer step."""

    def cut(self, x: Tensor) -> Tensor:
        """Return these rows of a (B, S) tensor of the rollout, at this batch's width."""
        return x[self.index, : self.batch.ids.shape[1]]


def policy_terms(
    state: PpoState, experience: Rollout, targets: Targets, part: Minibatch, config: PpoConfig
) -> LossOutput:
    """Return the policy's whole loss on some rows: advantage, entropy bonus, KL where it is a loss."""
    settings, mask = config.loss, part.batch.completion_mask
    with_entropy = settings.entropy_coef > 0 or settings.entropy_target is not None
    read = completion_logprobs(
        state.trunk,
        POLICY,
        part.batch,
        temperature=config.sampling.temperature,
        chunk_tokens=config.compute.chunk_tokens,
        with_entropy=with_entropy,
        with_kl=config.kl.place == "loss" and config.kl.estimator == "full",
    )
    old = part.cut(experience.old_logprobs)
    # Every policy loss is proportional to the advantages, so weighting these weights its rows.
    advantages = part.cut(targets.advantages) * part.weights
    policy = policy_loss(read.logprobs, old, advantages, mask, settings, part.denominator)
    moved = masked_sum((read.logprobs.detach() - old).abs(), mask, part.denominator)
    loss, metrics = policy.loss, {"policy_loss": policy.loss, "moved": moved, **policy.metrics}
    if read.entropy is not None:
        loss = loss - state.entropy_coef * entropy_bonus(read.entropy * part.weights, mask, part.denominator)
    if config.kl.place == "loss":
        if read.kl is not None:
            terms = read.kl
        else:
            assert config.kl.estimator in ("k2", "k3"), "k1 as a loss is refused by the config"
            ref = part.cut(experience.ref_logprobs)
            terms = kl_loss_terms(read.logprobs, old, ref, mask, estimator=config.kl.estimator)
        kl_loss = masked_sum(terms * part.weights, mask, part.denominator)
        loss = loss + state.kl_coef * kl_loss
        metrics["kl_loss"] = kl_loss
    return LossOutput(loss + outside_loss(read, mask, part.denominator, config.mask), metrics)


def policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    settings: PolicyLoss,
    denominator: float,
) -> LossOutput:
    """Return the loss that the settings name; all arguments are (b, S) tensors of the same rows."""
    match settings:
        case PpoLossConfig():
            return ppo_policy_loss(
                policy_logprobs,
                old_logprobs,
                advantages,
                mask,
                clip_low=settings.clip_low,
                clip_high=settings.clip_high,
                denominator=denominator,
                dual_clip=settings.dual_clip,
            )
        case ReinforceLossConfig():
            return reinforce_policy_loss(policy_logprobs, old_logprobs, advantages, mask, denominator=denominator)
        case GspoLossConfig() | CispoLossConfig():
            loss = gspo_policy_loss if isinstance(settings, GspoLossConfig) else cispo_policy_loss
            low, high = settings.clip_low, settings.clip_high
            return loss(
                policy_logprobs, old_logprobs, advantages, mask, clip_low=low, clip_high=high, denominator=denominator
            )


def value_terms(
    state: PpoState, experience: Rollout, targets: Targets, part: Minibatch, config: PpoConfig
) -> LossOutput:
    """Return the critic's loss on some rows."""
    value = clipped_value_loss(
        completion_values(state.trunk, CRITIC, part.batch),
        part.cut(targets.old_values),
        part.cut(targets.returns),
        part.batch.completion_mask,
        clip_range=config.value.clip,
        denominator=part.denominator,
        huber_delta=config.value.huber_delta,
    )
    return LossOutput(value.loss, {"value_loss": value.loss, **value.metrics})


def rollout_metrics(experience: Rollout, scores: Tensor, rewards: Tensor, kl_coef: float) -> dict[str, float]:
    """Return what the rollout says of the policy before this step's update; means over completions or their tokens."""
    mask = experience.batch.completion_mask
    scores = scores if scores.ndim == 1 else (scores * mask).sum(dim=1)
    k1 = kl_k1(experience.old_logprobs, experience.ref_logprobs) * mask
    k3 = kl_k3(experience.old_logprobs, experience.ref_logprobs) * mask
    lengths = mask.sum(1).float()
    mismatch = {}
    if experience.was_reread:  # else the first minibatch tells
        gap = (experience.sampler_logprobs - experience.old_logprobs).abs() * mask
        mismatch = {"sampler_mismatch": float(gap.sum() / mask.sum()), "sampler_mismatch_max": float(gap.max())}
    return {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std(unbiased=False)),
        "reward_mean": float((rewards * mask).sum(1).mean()),
        "kl_sequence": experience.sequence_kl,
        "kl_token": float(k1.sum() / mask.sum()),
        "kl_k3": float(k3.sum(1).mean()),
        "kl_coef": kl_coef,
        "entropy": experience.entropy,
        "length_mean": float(lengths.mean()),
        "stop_fraction": float(experience.stopped.float().mean()),
        **mismatch,
    }

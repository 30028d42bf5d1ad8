"""Proximal policy optimization for language models: sample, score, update (arXiv:1707.06347, 1909.08593).

The whole algorithm reads top to bottom here: `ppo` is the loop, `update` one step's learning. Its mathematics is in
`core`: rewards and KL, advantages, the clipped losses.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harken.config import AdaptiveKl, FullConfig, OwnSamplerConfig, PpoConfig
from harken.core.advantages import gae, scale_to_unit_std, whiten
from harken.core.importance import truncated_importance_weights
from harken.core.kl import adaptive_kl_coef, kl_k1, kl_k3
from harken.core.policy_loss import entropy_bonus, ppo_policy_loss
from harken.core.rewards import apply_stop_penalty, clip_scores, token_rewards
from harken.core.value_loss import clipped_value_loss, explained_variance
from harken.errors import DataError
from harken.lm.batch import Batch
from harken.lm.checkpoint import load_training, save_training
from harken.lm.forward import completion_logprobs, completion_values, values_of_states
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.samplers import Sampler, open_sampler
from harken.lm.speed import Meter
from harken.lm.trunk import Trunk
from harken.policy.rollout import CRITIC, POLICY, Rollout, rollout, score
from harken.policy.selftest import check_first_rollout, check_first_update, check_output_layer
from harken.policy.sft import save_policy
from harken.progress import QUIET, Reporter
from harken.protocols import Reward, SharesBase
from harken.records import Prompt
from harken.runs import Run, Timer, derive_seed


@dataclass
class PpoState:
    """What `update` changes: roles of the trunk, their optimizers, and the KL coefficient; and who draws."""

    trunk: Trunk
    optimizers: dict[str, Optimizer]
    kl_coef: float
    sampler: Sampler


def ppo(
    model: str | Path,
    prompts: Sequence[Prompt],
    reward: Reward,
    out: Path,
    config: PpoConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train a policy on a reward and return the folder of the trained model.

    Args:
        model: where policy and reference start: folder, Hugging Face id, or `smollm2`.
        prompts: drawn without replacement, in a fresh order each pass.
        reward: any callable that scores completions; a reward model on the same base shares it.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings; the defaults are recommended ones.
        inputs: names and paths of prompts and reward, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no prompts, or one too long.
        SelfTestError: something is wrong with model, sampler or rendering; the message says what.
        ResumeError: `out` was started with other settings.
    """
    config = config or PpoConfig()
    run = Run(out, "ppo", config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    if not prompts:
        raise DataError("no prompts; give at least one")
    config = with_settled_dtype(config, run)
    state = prepare(model, reward, config, reporter)
    trunk = state.trunk
    if run.checkpoint_folder:
        state.kl_coef = load_training(run.checkpoint_folder, trunk, state.optimizers)["kl_coef"]
    meter = Meter(trunk, config.tune)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"score {metrics['score_mean']:+.2f}  KL {metrics['kl_sequence']:.1f} nats"

    steps, done = range(run.step, config.steps), run.step
    for step in reporter.track(steps, "ppo", total=config.steps, done=run.step, describe=describe):
        timer = Timer()
        experience = rollout(trunk, draw_prompts(prompts, config, step), config, step=step, sampler=state.sampler)
        if step == 0:
            check_first_rollout(trunk, experience, foreign=not isinstance(config.sampler, OwnSamplerConfig))
        if config.kl_budget is not None and experience.sequence_kl >= config.kl_budget:
            # A resumed run draws the same completions and stops here too.
            reporter.say(f"KL budget of {config.kl_budget:g} nats spent after {step} of {config.steps} iterations")
            break
        num_tokens = int(experience.batch.completion_mask.sum())
        timer.measure("sample", num_tokens)
        scores = score(experience, reward)
        timer.measure("score", num_tokens)
        metrics = update(state, experience, scores, config, step=step)
        timer.measure("train", num_tokens * int(metrics["epochs_run"]))
        flops = step_flops(meter, experience, int(metrics["epochs_run"]))
        run.log(step + 1, {**metrics, **timer.rates(), **meter.figures(timer, flops)})
        for row in range(min(config.num_samples, len(experience.completions))):
            run.log_sample(step + 1, sample_row(experience, scores, row))
        if (step + 1) % config.save_every == 0:
            save_step(run, state, step + 1)
        done = step + 1
    state.optimizers[POLICY].use_average()
    folder = save_policy(out, trunk, run, str(model))
    run.finish({"iterations": done, "episodes": done * config.prompts_per_step * config.completions_per_prompt})
    return folder


def prepare(model: str | Path, reward: Reward, config: PpoConfig, reporter: Reporter = QUIET) -> PpoState:
    """Put base, policy, critic and reward into memory and run the first self-test.

    The critic starts as the reward model when that lives on the same base (arXiv:2203.02155), else from a random head.
    """
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(POLICY, config.tune, seed=derive_seed(config.seed, POLICY))
    if isinstance(config.tune, FullConfig) and config.critic == "own":
        # Copies of the base are made before any reward model puts its adapters on it.
        trunk.add_role(CRITIC, config.tune, seed=derive_seed(config.seed, CRITIC), head=True)
    if isinstance(reward, SharesBase):
        reward.attach(trunk)
    if CRITIC not in trunk.roles:
        scorer = trunk.roles.get("reward")
        shared = scorer is not None and scorer.lora is not None
        tune = None if config.critic == "head" else scorer.lora if scorer and shared else config.tune
        through = "reward" if shared and tune is None else None
        trunk.add_role(CRITIC, tune, seed=derive_seed(config.seed, CRITIC), head=True, through=through)
        if shared:
            copy_reward_to_critic(trunk)
    check_output_layer(trunk)
    rollouts = config.prompts_per_step * config.completions_per_prompt
    updates = config.steps * config.epochs * -(-rollouts // config.minibatch_size)
    optimizers = {
        POLICY: Optimizer(trunk.parameters(POLICY), config.policy_optimizer, updates),
        CRITIC: Optimizer(trunk.parameters(CRITIC), config.critic_optimizer, updates),
    }
    length = min(config.max_length, trunk.context_length)
    sampler = open_sampler(trunk, config.sampler, batch_size=config.sampling_batch_size, max_length=length)
    return PpoState(trunk, optimizers, config.kl.coef, sampler)


def copy_reward_to_critic(trunk: Trunk) -> None:
    """Start the critic as the reward model, its head rescaled so that it predicts normalized scores."""
    tensors, scorer = trunk.state("reward"), trunk.roles["reward"]
    tensors["head.weight"] = tensors["head.weight"] * scorer.gain
    tensors["head.bias"] = tensors["head.bias"] * scorer.gain + scorer.bias
    trunk.load_state(CRITIC, {name: tensors[name] for name in trunk.parameters(CRITIC)})


def update(state: PpoState, experience: Rollout, scores: Tensor, config: PpoConfig, *, step: int) -> dict[str, float]:
    """Learn from one rollout: rewards, advantages, then epochs of minibatches; return the step's metrics.

    Args:
        state: changed in place.
        experience: of the current policy.
        scores: (B,) what the reward gave.
        config: of PPO.
        step: decides the order of the minibatches together with the seed.
    """
    mask = experience.batch.completion_mask
    rewards = make_rewards(experience, scores, config, state.kl_coef)
    advantages, returns = gae(
        rewards, experience.values, mask, gamma=config.loss.gamma, gae_lambda=config.loss.gae_lambda
    )
    value_fit = float(explained_variance(experience.values, returns, mask))
    if config.loss.whiten_advantages:
        advantages = whiten(advantages, mask)
    weights, weighing = importance_weights(experience, config)
    targets = Targets(advantages if weights is None else advantages * weights, returns)
    totals: dict[str, float] = {}
    metrics: dict[str, float] = {}
    count = epochs_run = 0
    approx_kl = 0.0
    for epoch in range(config.epochs):
        epochs_run += 1
        order = list(range(len(scores)))
        random.Random(derive_seed(config.seed, "minibatches", step, epoch)).shuffle(order)
        for start in range(0, len(order), config.minibatch_size):
            rows = order[start : start + config.minibatch_size]
            metrics = minibatch_step(state, experience, targets, rows, config)
            if step == 0 and count == 0:
                check_first_update(state.trunk, metrics)
            count += 1
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value
        approx_kl = metrics["approx_kl"]
        if config.approx_kl_limit is not None and approx_kl > config.approx_kl_limit:
            break
    expected = epochs_run * -(-len(scores) // config.minibatch_size)
    assert count == expected, f"{count} optimizer steps, planned {expected}"
    metrics = {name: value / count for name, value in totals.items()}
    metrics |= rollout_metrics(experience, scores, rewards, state.kl_coef) | weighing
    metrics |= {
        "explained_variance": value_fit,
        "epochs_run": float(epochs_run),
        "approx_kl_last": approx_kl,
    }
    if isinstance(config.kl, AdaptiveKl):
        state.kl_coef = adaptive_kl_coef(
            state.kl_coef,
            metrics["kl_sequence"],
            target=config.kl.target,
            horizon=config.kl.horizon,
            num_episodes=len(scores),
            lower=config.kl.coef / 100,
            upper=config.kl.coef * 100,
        )
    return metrics


@dataclass(frozen=True)
class Targets:
    """What the minibatches of one update learn."""

    advantages: Tensor
    """(B, S), standardized if the config says so, then weighted if a foreign sampler drew."""
    returns: Tensor
    """(B, S), made before standardizing."""


def importance_weights(experience: Rollout, config: PpoConfig) -> tuple[Tensor | None, dict[str, float]]:
    """Return (B, S) weights of a foreign sampler's tokens in the policy loss, and their metrics; none for our own."""
    if isinstance(config.sampler, OwnSamplerConfig):
        return None, {}
    weights, metrics = truncated_importance_weights(
        experience.old_logprobs,
        experience.sampler_logprobs,
        experience.batch.completion_mask,
        cap=config.sampler.importance_cap,
    )
    return weights, {name: float(value) for name, value in metrics.items()}


def make_rewards(experience: Rollout, scores: Tensor, config: PpoConfig, kl_coef: float) -> Tensor:
    """Return (B, S) rewards: -kl_coef * k1 at each token, and the clipped, penalized score at the last one."""
    clipped = clip_scores(scores, config.score.clip)
    if config.score.stop_penalty != "none":
        clipped = apply_stop_penalty(
            clipped,
            experience.stopped,
            mode=config.score.stop_penalty,
            value=config.score.stop_value,
        )
    kl = kl_k1(experience.old_logprobs, experience.ref_logprobs)
    rewards = token_rewards(clipped, kl, experience.batch.completion_mask, kl_coef)
    return scale_to_unit_std(rewards, experience.batch.completion_mask) if config.score.whiten_rewards else rewards


def minibatch_step(
    state: PpoState, experience: Rollout, targets: Targets, rows: Sequence[int], config: PpoConfig
) -> dict[str, float]:
    """Take one optimizer step of policy and critic; losses are means over the minibatch's completion tokens."""
    trunk, settings = state.trunk, config.loss
    batch = experience.batch
    lengths = batch.lengths.tolist()
    groups = trunk.microbatches([lengths[row] for row in rows], config.compute.microbatch_tokens)
    denominator = float(batch.completion_mask[torch.tensor(rows, device=batch.ids.device)].sum())
    totals: dict[str, float] = {}

    def add(name: str, value: Tensor) -> None:
        totals[name] = totals.get(name, 0.0) + float(value.detach())

    for group in groups:
        chosen = [rows[index] for index in group]
        part = batch.select(chosen)
        index, size = torch.tensor(chosen, device=batch.ids.device), part.ids.shape[1]
        mask = part.completion_mask
        with_entropy = settings.entropy_coef > 0
        read = completion_logprobs(
            trunk,
            POLICY,
            part,
            temperature=config.sampling.temperature,
            chunk_tokens=config.compute.chunk_tokens,
            with_entropy=with_entropy,
        )
        policy = ppo_policy_loss(
            read.logprobs,
            experience.old_logprobs[index, :size],
            targets.advantages[index, :size],
            mask,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            denominator=denominator,
            dual_clip=settings.dual_clip,
        )
        loss = policy.loss
        if read.entropy is not None:
            loss = loss - settings.entropy_coef * entropy_bonus(read.entropy, mask, denominator)
        torch.autograd.backward(loss)
        states = experience.critic_states
        value = clipped_value_loss(
            critic_values(trunk, part, None if states is None else states[index, :size]),
            experience.values[index, :size],
            targets.returns[index, :size],
            mask,
            clip_range=settings.value_clip,
            denominator=denominator,
        )
        torch.autograd.backward(value.loss)
        add("policy_loss", policy.loss)
        add("value_loss", value.loss)
        for name, share in (policy.metrics | value.metrics).items():
            add(name, share)
    rate = state.optimizers[POLICY].learning_rate()
    norms = {f"grad_norm_{role}": optimizer.step() for role, optimizer in state.optimizers.items()}
    waste = trunk.padding_waste([lengths[row] for row in rows], groups)
    return {**totals, **norms, "lr": rate, "padding_waste": waste}


def critic_values(trunk: Trunk, batch: Batch, states: Tensor | None) -> Tensor:
    """Return (B, S) values: from the critic's own pass, or from states (B, S, H) that were read once."""
    if states is None:
        return completion_values(trunk, CRITIC, batch)
    return values_of_states(trunk, CRITIC, states, batch.completion_mask)


def rollout_metrics(experience: Rollout, scores: Tensor, rewards: Tensor, kl_coef: float) -> dict[str, float]:
    """Return what the rollout says of the policy before this step's update; means over completions or their tokens."""
    mask = experience.batch.completion_mask
    k1 = kl_k1(experience.old_logprobs, experience.ref_logprobs) * mask
    k3 = kl_k3(experience.old_logprobs, experience.ref_logprobs) * mask
    lengths = mask.sum(1).float()
    mismatch = (experience.sampler_logprobs - experience.old_logprobs).abs() * mask
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
        "sampler_mismatch": float(mismatch.sum() / mask.sum()),
        "sampler_mismatch_max": float(mismatch.max()),
    }


def step_flops(meter: Meter, experience: Rollout, epochs: int) -> dict[str, float]:
    """Return operations of one iteration by phase: what it takes by definition, however the passes are arranged.

    Sampling reads each token once; then policy and reference read it with the output layer, the critic without; layers
    that no role changes are computed once for all of them. A critic that is only a head costs next to nothing.
    """
    batch = experience.batch
    num_tokens = int(batch.completion_mask.sum())
    size = int(batch.lengths.sum()), batch.num_rows
    is_cached = batch.lower_states is not None
    reading = partial(meter.reading, *size, with_lower=not is_cached)
    policy, critic = (meter.training(*size, count, with_lower=not is_cached) for count in (num_tokens, 0))
    scoring = 2 * reading(num_tokens) + reading(0) + (meter.lower(*size) if is_cached else 0.0)
    return {
        "sample": meter.reading(*size, num_tokens) + scoring,
        "train": epochs * (policy + (critic if experience.critic_states is None else 0.0)),
    }


def draw_prompts(prompts: Sequence[Prompt], config: PpoConfig, step: int) -> list[Prompt]:
    """Return the step's prompts: without replacement until all were used, then in a fresh order."""
    chosen: list[Prompt] = []
    for position in range(step * config.prompts_per_step, (step + 1) * config.prompts_per_step):
        lap, place = divmod(position, len(prompts))
        chosen.append(prompts[_order(len(prompts), config.seed, lap)[place]])
    return chosen


def _order(count: int, seed: int, lap: int) -> list[int]:
    order = list(range(count))
    random.Random(derive_seed(seed, "prompts", lap)).shuffle(order)
    return order


def sample_row(experience: Rollout, scores: Tensor, row: int) -> dict[str, object]:
    """Return one completion as a row of samples.jsonl."""
    prompt = experience.prompts[row]
    return {
        "prompt": prompt.messages[-1].content,
        "completion": experience.completions[row].message.content,
        "score": round(float(scores[row]), 4),
        "finish_reason": experience.completions[row].finish_reason,
    }


def save_step(run: Run, state: PpoState, step: int) -> None:
    """Save everything the next iteration starts from; between iterations there is no rollout to keep."""
    run.save_checkpoint(
        step,
        lambda folder: save_training(folder, state.trunk, state.optimizers, {"kl_coef": state.kl_coef}),
    )

"""Proximal policy optimization for language models: sample, score, update (arXiv:1707.06347, 1909.08593), and its kin.

The whole algorithm reads top to bottom here: `ppo` is the loop; `update` (in `policy.update`) is one step's learning.
RLOO, GRPO and the others are this loop with another estimator of advantages or another loss (`presets`). The
mathematics is in `core`: rewards and KL, advantages, the clipped losses.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harken.config import FullConfig, GroupConfig, OwnSamplerConfig, PpoConfig
from harken.core.group_advantages import groups_with_equal_rewards
from harken.errors import DataError
from harken.lm.checkpoint import load_training, save_training
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.samplers import open_sampler
from harken.lm.speed import Meter
from harken.lm.trunk import Trunk
from harken.policy.guard import Guard
from harken.policy.head_critic import HeadCritic
from harken.policy.nlpo import add_mask, load_mask, remove_mask, renew_mask_if_due, save_mask
from harken.policy.ptx import PtxMix
from harken.policy.rollout import CRITIC, POLICY, Rollout, draw_prompts, merged, rollout, score, score_greedy
from harken.policy.selftest import check_first_rollout, check_output_layer
from harken.policy.sft import save_policy
from harken.policy.update import PpoState, update
from harken.progress import QUIET, Reporter
from harken.protocols import Reward, SharesBase, refuse_chance
from harken.records import Prompt
from harken.runs import Run, Timer, derive_seed


def ppo(
    model: str | Path,
    prompts: Sequence[Prompt],
    reward: Reward,
    out: Path,
    config: PpoConfig | None = None,
    *,
    judge: Reward | None = None,
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
        judge: a reward that nothing is learned from; where the score rises while this one falls, the run ends and gives
            out the best policy it had (`score.guard`).
        inputs: names and paths of prompts and reward, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no prompts, or one too long.
        RewardError: a reward model that may be no better than a coin, unless `score.accept_chance`.
        SelfTestError: something is wrong with model, sampler or rendering; the message says what.
        ResumeError: `out` was started with other settings.
    """
    config = config or PpoConfig()
    if not config.score.accept_chance:
        refuse_chance(reward)
    ptx = {"ptx": config.ptx.data} if config.ptx.data else {}
    run = Run(out, "ppo", config, {"model": model, **ptx, **(inputs or {})})
    if run.finished:
        return out / "model"
    if not prompts:
        raise DataError("no prompts; give at least one")
    config = with_settled_dtype(config, run)
    state = prepare(model, reward, config, reporter)
    trunk = state.trunk
    if run.checkpoint_folder:
        state.set_numbers(load_training(run.checkpoint_folder, trunk, state.learners))
        load_mask(run.checkpoint_folder, trunk)
    guard = Guard(run, trunk, config, judge)
    meter = Meter(trunk, config.tune)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"score {metrics['score_mean']:+.2f}  KL {metrics['kl_sequence']:.1f} nats"

    steps, done, trouble = range(run.step, config.steps), run.step, None
    for step in reporter.track(steps, "ppo", total=config.steps, done=run.step, describe=describe):
        timer = Timer()
        experience, scores, rounds = gather(state, prompts, reward, config, step=step, timer=timer)
        if config.kl.budget is not None and experience.sequence_kl >= config.kl.budget:
            # A resumed run draws the same completions and stops here too.
            reporter.say(f"KL budget of {config.kl.budget:g} nats spent after {step} of {config.steps} iterations")
            break
        seen = guard.look(experience, scores, step)
        timer.measure("score", 0)
        if trouble := guard.trouble():
            # Here too, and goes back to the same policy.
            break
        baseline = score_greedy(experience, reward)
        metrics = update(state, experience, scores, config, step=step, baseline=baseline) | rounds | seen
        renew_mask_if_due(trunk, POLICY, config.mask, step + 1)
        timer.measure("train", int(experience.batch.completion_mask.sum()) * int(metrics["epochs_run"]))
        flops = step_flops(meter, experience, int(metrics["epochs_run"]), has_critic=config.has_critic)
        run.log(step + 1, {**metrics, **timer.rates(), **meter.figures(timer, flops)})
        for row in range(min(config.num_samples, len(experience.completions))):
            run.log_sample(step + 1, sample_row(experience, scores, row))
        if (step + 1) % config.save_every == 0:
            save_step(run, state, step + 1)
        done = step + 1
    # Epochs may end early; what was planned is asserted in each update.
    state.optimizers[POLICY].finish(stopped_early=True)
    stopped = guard.go_back(reporter, trouble) if trouble else {}
    remove_mask(trunk, POLICY, config.mask)
    folder = save_policy(out, trunk, run, str(model))
    run.finish({"iterations": done, "episodes": done * config.rollouts, **stopped})
    return folder


def gather(
    state: PpoState, prompts: Sequence[Prompt], reward: Reward, config: PpoConfig, *, step: int, timer: Timer
) -> tuple[Rollout, Tensor, dict[str, float]]:
    """Return a step's experience, its scores, and `sampling_rounds` where several may be drawn.

    With `advantage.sampling_rounds` above 1, groups whose scores are all equal make way for groups of further prompts
    (DAPO). Those that are left over fill up the last places, so that every step has the same number of completions.
    """
    settings = config.advantage
    most = settings.sampling_rounds if isinstance(settings, GroupConfig) else 1
    size, wanted = config.completions_per_prompt, config.prompts_per_step
    rollouts: list[Rollout] = []
    scored: list[Tensor] = []
    good: list[tuple[int, int]] = []
    spare: list[tuple[int, int]] = []
    for number in range(most):
        chosen = draw_prompts(prompts, config, step * most + number)
        experience = rollout(state.trunk, chosen, config, step=step * most + number, sampler=state.sampler)
        if step == 0 and number == 0:
            foreign = not isinstance(config.sampler, OwnSamplerConfig)
            check_first_rollout(state.trunk, experience, foreign=foreign, mask=config.mask)
        num_tokens = int(experience.batch.completion_mask.sum())
        timer.measure("sample", num_tokens)
        scores = score(experience, reward)
        timer.measure("score", num_tokens)
        if most == 1:
            return experience, scores, {}
        rollouts.append(experience)
        # Of rewards of tokens only the sum is of use to a group.
        scored.append(scores if scores.ndim == 1 else scores.sum(dim=1))
        for group, is_equal in enumerate(groups_with_equal_rewards(scored[-1], size).tolist()):
            (spare if is_equal else good).append((number, group))
        if len(good) >= wanted:
            break
    groups = [*good, *spare][:wanted]
    rows = [(number, group * size + copy) for number, group in groups for copy in range(size)]
    scores = torch.stack([scored[number][row] for number, row in rows])
    return merged(rollouts, rows), scores, {"sampling_rounds": float(len(rollouts))}


def prepare(model: str | Path, reward: Reward, config: PpoConfig, reporter: Reporter = QUIET) -> PpoState:
    """Put base, policy, critic and reward into memory and run the first self-test.

    The critic starts as the reward model when that lives on the same base (arXiv:2203.02155), else from a random head;
    one that is only a head, from 0.
    """
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(POLICY, config.tune, seed=derive_seed(config.seed, POLICY))
    add_mask(trunk, POLICY, config.mask, config.tune)
    if isinstance(config.tune, FullConfig) and config.has_critic and config.value.critic == "own":
        # Copies of the base are made before any reward model puts its adapters on it.
        trunk.add_role(CRITIC, config.tune, seed=derive_seed(config.seed, CRITIC), head=True)
    if isinstance(reward, SharesBase):
        reward.attach(trunk)
    critic_is_random = not (config.has_critic and start_critic(trunk, config))
    check_output_layer(trunk)
    per_step, warmup = config.updates_per_step, config.value.warmup_steps
    policy_steps = max(1, config.steps - warmup) * per_step
    optimizers = {POLICY: Optimizer(trunk.parameters(POLICY), config.policy_optimizer, policy_steps)}
    head_critic = None
    if config.has_head_critic:
        head_critic = HeadCritic(trunk, config.value)
    elif config.has_critic:
        optimizers[CRITIC] = Optimizer(trunk.parameters(CRITIC), config.critic_optimizer, config.steps * per_step)
    length = min(config.max_length, trunk.context_length)
    sampler = open_sampler(trunk, config.sampler, batch_size=config.sampling_batch_size, max_length=length)
    ptx = PtxMix(trunk, config) if config.ptx.data else None
    return PpoState(
        trunk,
        optimizers,
        config.kl.coef,
        sampler,
        config.loss.entropy_coef,
        critic_is_random=critic_is_random,
        head_critic=head_critic,
        ptx=ptx,
    )


def start_critic(trunk: Trunk, config: PpoConfig) -> bool:
    """Put the critic on the trunk unless it is there; return whether it starts as the reward model."""
    scorer = trunk.roles.get("reward")
    adapters = None if scorer is None else scorer.lora
    if CRITIC not in trunk.roles:
        tune = None if config.value.critic == "head" else adapters or config.tune
        trunk.add_role(CRITIC, tune, seed=derive_seed(config.seed, CRITIC), head=True)
    if scorer is None or adapters is None or trunk.roles[CRITIC].lora is None:
        return False
    tensors = trunk.state("reward")
    # Its head is rescaled so that it predicts normalized scores.
    tensors["head.weight"] = tensors["head.weight"] * scorer.gain
    tensors["head.bias"] = tensors["head.bias"] * scorer.gain + scorer.bias
    trunk.load_state(CRITIC, tensors)
    return True


def step_flops(meter: Meter, experience: Rollout, epochs: int, *, has_critic: bool) -> dict[str, float]:
    """Return operations of one iteration by phase: what it takes by definition, however the passes are arranged.

    Sampling reads each token once; then the reference, and perhaps the policy again, reads it with the output layer,
    a critic of its own without; layers that no role changes are computed once for all of them, in sampling. A critic
    that is a head on the reference's states costs next to nothing.
    """
    batch = experience.batch
    num_tokens = int(batch.completion_mask.sum())
    size = int(batch.lengths.sum()), batch.num_rows
    is_cached = batch.lower_states is not None
    reading = partial(meter.reading, *size, with_lower=not is_cached)
    policy, critic = (meter.training(*size, count, with_lower=not is_cached) for count in (num_tokens, 0))
    readings = 1 + experience.was_reread
    reads_critic = has_critic and experience.critic_states is None
    scoring = readings * reading(num_tokens) + (reading(0) if reads_critic else 0.0)
    return {
        "sample": meter.reading(*size, num_tokens) + scoring,
        "train": epochs * (policy + (critic if reads_critic else 0.0)),
    }


def sample_row(experience: Rollout, scores: Tensor, row: int) -> dict[str, object]:
    """Return one completion as a row of samples.jsonl."""
    prompt = experience.prompts[row]
    return {
        "prompt": prompt.messages[-1].content,
        "completion": experience.completions[row].message.content,
        "score": round(float(scores[row].sum()), 4),
        "finish_reason": experience.completions[row].finish_reason,
    }


def save_step(run: Run, state: PpoState, step: int) -> None:
    """Save everything the next iteration starts from; between iterations there is no rollout to keep."""

    def write(folder: Path) -> None:
        save_training(folder, state.trunk, state.learners, state.numbers())
        save_mask(folder, state.trunk)

    run.save_checkpoint(step, write)

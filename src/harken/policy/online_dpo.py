"""DPO on pairs that the policy itself writes: sample, judge, learn, again and again (arXiv:2402.04792).

With soft labels it has the optimum of PPO, pi_ref exp(score / (beta score_scale)), whatever the pairs are drawn from;
the policy's own pairs are about what it does now. With `reference_every` it is iterative DPO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harken.config import OnlineDpoConfig, OwnSamplerConfig
from harken.errors import DataError, SelfTestError, UsageError
from harken.lm.batch import Tokens, shuffled_batches
from harken.lm.checkpoint import load_tensors, load_training, save_tensors, save_training
from harken.lm.forward import TOLERANCE, can_share_prompts
from harken.lm.load import load_model, with_settled_dtype
from harken.lm.optim import Optimizer
from harken.lm.sample import completion_seeds, to_completion
from harken.lm.samplers import Sampler, open_sampler
from harken.lm.trunk import Trunk
from harken.policy.preference_step import Examples, all_logprobs, train_step
from harken.policy.rollout import draw_prompts, must_reread
from harken.policy.selftest import check_output_layer
from harken.policy.sft import ROLE, save_policy
from harken.progress import QUIET, Reporter
from harken.protocols import PairwiseJudge, Reward, SharesBase, checked_preferences, checked_scores
from harken.records import Completion, Prompt, SamplingSettings
from harken.runs import Run, Timer, derive_seed

REFERENCE = "reference"


@dataclass
class OnlineState:
    """What an iteration changes, and who draws."""

    trunk: Trunk
    optimizer: Optimizer
    sampler: Sampler
    shared: bool
    """Whether completions of one prompt share its computation."""

    @property
    def reference(self) -> str | None:
        """The reference's role: its own where it moves, else the base."""
        return REFERENCE if REFERENCE in self.trunk.roles else None


@dataclass(frozen=True)
class Drawn:
    """B prompts with n completions each, read by policy and reference before any update."""

    prompts: list[Prompt]
    """B of them."""
    completions: list[list[Completion]]
    """(B, n)."""
    groups: list[tuple[Tokens, ...]]
    """(B, n)."""
    sampler_logprobs: Tensor
    """(B, n), sums as drawn."""
    policy_logprobs: Tensor
    """(B, n), sums at temperature 1."""
    ref_logprobs: Tensor
    """(B, n), likewise."""

    @property
    def num_tokens(self) -> int:
        """Completion tokens."""
        return sum(len(tokens.completion) for group in self.groups for tokens in group)


def online_dpo(
    model: str | Path,
    prompts: Sequence[Prompt],
    judge: Reward | PairwiseJudge,
    out: Path,
    config: OnlineDpoConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> Path:
    """Train a policy on its own completions as a judge prefers them; return the folder of the trained model.

    Args:
        model: where policy and reference start: folder, Hugging Face id, or `smollm2`.
        prompts: drawn without replacement, in a fresh order each pass.
        judge: scores completions, or compares two of them.
        out: run folder; a stopped run goes on, a finished one is returned as it is.
        config: settings; the defaults are recommended ones.
        inputs: names and paths of prompts and judge, for the manifest and for noticing that they changed.
        reporter: shows progress.

    Raises:
        DataError: no prompts, or one too long.
        RewardError: the judge failed; the message names the prompt.
        SelfTestError: policy, reference and sampler do not agree before the first update.
        ResumeError: `out` was started with other settings.
    """
    config = config or OnlineDpoConfig()
    run = Run(out, "online-dpo", config, {"model": model, **(inputs or {})})
    if run.finished:
        return out / "model"
    if not prompts:
        raise DataError("no prompts; give at least one")
    config = with_settled_dtype(config, run)
    state = prepare(model, prompts, judge, config, reporter)
    if run.checkpoint_folder:
        load_step(run.checkpoint_folder, state)
    metrics: dict[str, float] = {}

    def describe() -> str:
        return f"loss {metrics['loss']:.3f}  KL {metrics['kl_sequence']:.1f} nats"

    steps = range(run.step, config.steps)
    for step in reporter.track(steps, "online-dpo", total=config.steps, done=run.step, describe=describe):
        timer = Timer()
        drawn = draw(state, draw_prompts(prompts, config, step), config, step=step)
        if step == 0:
            check_first_draw(state.trunk, drawn, config)
        timer.measure("sample", drawn.num_tokens)
        examples, scores = judged(drawn, judge, config, shared=state.shared)
        timer.measure("score", drawn.num_tokens)
        metrics = {**learn(state, examples, config, step=step), **draw_metrics(drawn, scores)}
        timer.measure("train", config.epochs * sum(item.size for group in examples.groups for item in group))
        run.log(step + 1, {**metrics, **timer.rates()})
        for number in range(min(config.num_samples, config.prompts_per_step * config.completions_per_prompt)):
            run.log_sample(step + 1, sample_row(drawn, scores, *divmod(number, config.completions_per_prompt)))
        if config.reference_every is not None and (step + 1) % config.reference_every == 0:
            state.trunk.load_state(REFERENCE, state.trunk.state(ROLE))
        if (step + 1) % config.save_every == 0:
            run.save_checkpoint(step + 1, lambda folder: save_step(folder, state))
    state.optimizer.finish()
    folder = save_policy(out, state.trunk, run, str(model))
    run.finish({"episodes": config.steps * config.prompts_per_step * config.completions_per_prompt})
    return folder


def prepare(
    model: str | Path,
    prompts: Sequence[Prompt],
    judge: Reward | PairwiseJudge,
    config: OnlineDpoConfig,
    reporter: Reporter = QUIET,
) -> OnlineState:
    """Put base, policy and judge into memory.

    Raises:
        UsageError: a judge that compares two completions is given more.
    """
    if isinstance(judge, PairwiseJudge) and config.completions_per_prompt != 2:
        raise UsageError(
            f"completions_per_prompt = {config.completions_per_prompt}: this judge compares two; set it to 2"
        )
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=reporter.say))
    trunk.add_role(ROLE, config.tune, seed=derive_seed(config.seed, ROLE))
    if config.reference_every is not None:
        trunk.add_role(REFERENCE, config.tune, seed=derive_seed(config.seed, ROLE))
    if isinstance(judge, SharesBase):
        judge.attach(trunk)
    check_output_layer(trunk)
    limit = min(config.max_length, trunk.context_length)
    room = limit - config.sampling.max_new_tokens
    longest = max((trunk.chat.encode_prompt(prompt, max_length=room) for prompt in prompts), key=len)
    probe = [Tokens(longest, longest[-1:] * config.sampling.max_new_tokens)] * 2
    minibatches = -(-config.prompts_per_step // config.minibatch_size)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, config.steps * config.epochs * minibatches)
    sampler = open_sampler(trunk, config.sampler, batch_size=config.sampling_batch_size, max_length=limit)
    return OnlineState(trunk, optimizer, sampler, can_share_prompts(trunk, probe))


def draw(state: OnlineState, prompts: Sequence[Prompt], config: OnlineDpoConfig, *, step: int) -> Drawn:
    """Sample completions of each prompt and read them under policy and reference.

    Args:
        state: the policy draws.
        prompts: B of them.
        config: how many completions, how drawn.
        step: together with the seed it decides every random draw.

    Raises:
        DataError: a prompt leaves no room for `max_new_tokens`; the message names it.
    """
    trunk, n = state.trunk, config.completions_per_prompt
    limit = min(config.max_length, trunk.context_length) - config.sampling.max_new_tokens
    ids = [trunk.chat.encode_prompt(prompt, max_length=limit) for prompt in prompts]
    seeds = completion_seeds(len(ids) * n, config.seed, "online-dpo", step)
    settings = SamplingSettings(**config.sampling.model_dump())
    drawn = state.sampler(ROLE, ids, settings, seeds=seeds, n=n)
    records = [
        to_completion(
            trunk.chat, prompts[row // n], item, settings, seed=seed, model=f"{trunk.source}+online-dpo@{step}"
        )
        for row, (item, seed) in enumerate(zip(drawn, seeds, strict=True))
    ]
    rows = [range(start, start + n) for start in range(0, len(drawn), n)]
    groups = [tuple(Tokens(ids[row // n], drawn[row].token_ids) for row in group) for group in rows]

    def read(role: str | None) -> Tensor:
        return all_logprobs(trunk, role, groups, config.compute, shared=state.shared)

    sampler_logprobs = torch.tensor([[sum(drawn[row].logprobs) for row in group] for group in rows])
    was_reread = step == 0 or not draws_plainly(config) or must_reread(drawn, config.sampler)
    return Drawn(
        prompts=list(prompts),
        completions=[[records[row] for row in group] for group in rows],
        groups=groups,
        sampler_logprobs=sampler_logprobs,
        policy_logprobs=read(ROLE) if was_reread else sampler_logprobs,
        ref_logprobs=read(state.reference),
    )


def draws_plainly(config: OnlineDpoConfig) -> bool:
    """Whether completions are drawn from the policy itself: temperature 1, all tokens."""
    sampling = config.sampling
    return sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0


def judged(
    drawn: Drawn, judge: Reward | PairwiseJudge, config: OnlineDpoConfig, *, shared: bool
) -> tuple[Examples, Tensor | None]:
    """Return one pair of each prompt, the better completion first, and the (B, n) scores if the judge gave any.

    Raises:
        RewardError: the judge failed.
    """
    count, n = len(drawn.prompts), config.completions_per_prompt
    scores = None
    if isinstance(judge, PairwiseJudge):
        first, second = zip(*drawn.completions, strict=True)
        wins = torch.tensor(checked_preferences(judge, drawn.prompts, first, second))
        best = (wins < 0.5).long()
        worst, certainty = 1 - best, torch.maximum(wins, 1.0 - wins)
    else:
        asked = [prompt for prompt in drawn.prompts for _ in range(n)]
        answers = [completion for row in drawn.completions for completion in row]
        scores = torch.tensor(checked_scores(judge, asked, answers), dtype=torch.float64).reshape(count, n)
        # Where all are equal, the first and the last, so that they are two.
        best, worst = scores.argmax(1), n - 1 - scores.flip(1).argmin(1)
        lead = scores.gather(1, best[:, None]) - scores.gather(1, worst[:, None])
        certainty = torch.sigmoid(lead[:, 0] / config.score_scale)
    labels = certainty if config.soft_labels else torch.where(certainty > 0.5, 1.0, 0.5)
    picked = torch.stack([best, worst], dim=1)
    groups = [(group[one], group[other]) for group, (one, other) in zip(drawn.groups, picked.tolist(), strict=True)]
    reference = drawn.ref_logprobs.gather(1, picked)
    return Examples(groups, reference, labels.float(), torch.ones(count), shared), scores


def learn(state: OnlineState, examples: Examples, config: OnlineDpoConfig, *, step: int) -> dict[str, float]:
    """Learn from the pairs of one iteration; return the means of its minibatches' metrics.

    Args:
        state: changed in place.
        examples: pairs.
        config: loss and sizes.
        step: decides the order of the minibatches together with the seed.
    """
    seed = derive_seed(config.seed, "minibatches", step)
    batches = shuffled_batches(range(len(examples.groups)), config.minibatch_size, epochs=config.epochs, seed=seed)
    totals: dict[str, float] = {}
    for rows in batches:
        for name, value in train_step(state.trunk, state.optimizer, examples.select(rows), config).items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: value / len(batches) for name, value in totals.items()}


def draw_metrics(drawn: Drawn, scores: Tensor | None) -> dict[str, float]:
    """Return what the samples say of the policy before this iteration's update; means over completions."""
    found = {} if scores is None else {"score_mean": float(scores.mean()), "score_std": float(scores.std(correction=0))}
    reasons = [completion.finish_reason for row in drawn.completions for completion in row]
    return {
        **found,
        "kl_sequence": float((drawn.policy_logprobs - drawn.ref_logprobs).mean()),
        "length_mean": drawn.num_tokens / len(reasons),
        "stop_fraction": reasons.count("stop") / len(reasons),
    }


def check_first_draw(trunk: Trunk, drawn: Drawn, config: OnlineDpoConfig) -> None:
    """Before the first update the policy is the reference, and Harken's sampler agrees with the scorer.

    Raises:
        SelfTestError: one of them does not hold.
    """
    limit = TOLERANCE[trunk.dtype]
    moved = float((drawn.policy_logprobs - drawn.ref_logprobs).abs().sum()) / drawn.num_tokens
    if not moved <= limit:
        raise SelfTestError(
            f"policy and reference differ by {moved:.2g} nats a token before any update, expected 0; the policy does "
            "not start as the reference, or dropout is on"
        )
    if not (draws_plainly(config) and isinstance(config.sampler, OwnSamplerConfig)):
        return
    mismatch = float((drawn.sampler_logprobs - drawn.policy_logprobs).abs().sum()) / drawn.num_tokens
    if not mismatch <= limit:
        raise SelfTestError(
            f"sampler and scorer log-probabilities differ by {mismatch:.2g} nats a token, expected at most {limit}; "
            "positions or attention mask differ between them"
        )


def save_step(folder: Path, state: OnlineState) -> None:
    """Save everything the next iteration starts from."""
    save_training(folder, state.trunk, {ROLE: state.optimizer}, {})
    if state.reference is not None:
        save_tensors(folder / f"{REFERENCE}.safetensors", state.trunk.state(REFERENCE))


def load_step(folder: Path, state: OnlineState) -> None:
    """Set everything as `save_step` saved it."""
    load_training(folder, state.trunk, {ROLE: state.optimizer})
    if state.reference is not None:
        state.trunk.load_state(REFERENCE, load_tensors(folder / f"{REFERENCE}.safetensors"))


def sample_row(drawn: Drawn, scores: Tensor | None, row: int, column: int) -> dict[str, object]:
    """Return one completion as a row of samples.jsonl."""
    completion = drawn.completions[row][column]
    return {
        "prompt": drawn.prompts[row].messages[-1].content,
        "completion": completion.message.content,
        **({} if scores is None else {"score": round(float(scores[row, column]), 4)}),
        "finish_reason": completion.finish_reason,
    }

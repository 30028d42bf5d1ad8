"""Two models on the same held-out prompts: is one better, says a judge that neither was trained on?"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from harken.artifacts import read_json, write_json, write_text
from harken.config import EvaluateConfig
from harken.estimates import Estimate, bootstrap_mean, length_controlled_win_rate, paired_difference, win_rate
from harken.evaluate.text import distinct_n, repetition
from harken.lm.batch import Batch, Tokens, pad
from harken.lm.forward import by_microbatch, completion_logprobs
from harken.lm.load import load_model
from harken.lm.q_heads import read_guide
from harken.lm.sample import completion_seeds, sample, to_completion
from harken.lm.trunk import Trunk
from harken.progress import QUIET, Reporter
from harken.protocols import Reward, checked_scores
from harken.records import Completion, Prompt, SamplingSettings
from harken.runs import Run

Judges = dict[str, Reward]
"""Name -> reward; the names `reward` and `lexicon` appear in the report."""


def evaluate(
    model: str | Path,
    against: str | Path,
    prompts: Sequence[Prompt],
    judges: Judges,
    out: Path,
    config: EvaluateConfig | None = None,
    *,
    inputs: Mapping[str, Path | str] | None = None,
    reporter: Reporter = QUIET,
) -> dict[str, Any]:
    """Compare a model with another on held-out prompts; write and return the evaluation.

    Args:
        model: the policy.
        against: the model it started from; KL and perplexity are measured under it.
        prompts: held-out ones; the first `max_prompts` are used.
        judges: each scores the completions of both.
        out: folder for evaluation.json and samples.jsonl.
        config: settings.
        inputs: names and paths of prompts and judges, for the manifest and for noticing that they changed.
        reporter: shows progress.
    """
    config = config or EvaluateConfig()
    models = {"model": model, "against": against}
    run = Run(out, "evaluate", config, {**models, "judges": ", ".join(judges), **(inputs or {})})
    if run.finished:
        return read_json(out / "evaluation.json")
    prompts = list(prompts)[: config.max_prompts]
    sides: dict[str, Side] = {}
    for name, source in (("policy", model), ("against", against)):
        trunk = Trunk(load_model(source, compute=config.compute, chat=config.chat, notify=reporter.say))
        role = read_guide(trunk, source, config.guidance if name == "policy" else None)
        sides[name] = Side(trunk, prompts, config, reporter, name, role=role)
    scores = {judge: {name: side.scores(reward) for name, side in sides.items()} for judge, reward in judges.items()}
    result = compare(sides["policy"], sides["against"], scores, config)
    write_json(out / "evaluation.json", result)
    write_text(out / "samples.jsonl", "".join(_sample_lines(prompts, sides, scores)))
    run.finish()
    return result


Scores = dict[str, dict[str, list[list[float]]]]
"""Judge -> side -> scores by prompt."""


def compare(policy: "Side", against: "Side", scores: Scores, config: EvaluateConfig) -> dict[str, Any]:
    """Return the evaluation that evaluation.json holds: both sides, their differences, win rates."""
    options: Any = {"resamples": config.bootstrap_resamples, "seed": config.seed}
    sides = {"policy": policy, "against": against}
    result: dict[str, Any] = {
        "num_prompts": len(policy.prompts) // policy.n,
        "completions_per_prompt": policy.n,
        "sampling": config.sampling.model_dump(),
        "finish_reasons": {name: side.finish_reasons() for name, side in sides.items()},
        "difference": {},
        "win_rate": {},
        "win_rate_length_controlled": {},
    }
    by_prompt = {"reward_score" if judge == "reward" else judge: found for judge, found in scores.items()}
    by_prompt["length_tokens"] = {name: side.lengths() for name, side in sides.items()}
    by_prompt["repetition"] = {name: side.repetition() for name, side in sides.items()}
    for name, side in sides.items():
        result[name] = {
            **{metric: bootstrap_mean(found[name], **options).as_dict() for metric, found in by_prompt.items()},
            # Of all texts together, so there is nothing to resample.
            **{f"distinct_{n}": _plain(distinct_n(side.texts(), n)) for n in (1, 2, 3)},
            "perplexity_reference": _plain(side.perplexity(against, config)),
        }
    result["policy"]["kl_sequence"] = bootstrap_mean(policy.kl(against, config), **options).as_dict()
    for metric, found in by_prompt.items():
        result["difference"][metric] = paired_difference(found["policy"], found["against"], **options).as_dict()
    for judge, found in scores.items():
        result["win_rate"][judge] = win_rate(found["policy"], found["against"], **options).as_dict()
        result["win_rate_length_controlled"][judge] = length_controlled_win_rate(
            found["policy"], found["against"], policy.lengths(), against.lengths(), seed=config.seed
        ).as_dict()
    return result


class Side:
    """One model's completions of the held-out prompts."""

    def __init__(
        self,
        trunk: Trunk,
        prompts: Sequence[Prompt],
        config: EvaluateConfig,
        reporter: Reporter,
        name: str,
        *,
        role: str | None = None,
    ) -> None:
        """Sample with a role (None: the model itself); both sides draw with the same seeds."""
        self.trunk, self.role = trunk, role
        self.n = config.completions_per_prompt
        self.prompts = [prompt for prompt in prompts for _ in range(self.n)]
        settings = SamplingSettings(**config.sampling.model_dump())
        room = trunk.context_length - settings.max_new_tokens
        ids = [trunk.chat.encode_prompt(prompt, max_length=room) for prompt in prompts]
        seeds = completion_seeds(len(self.prompts), config.seed, "evaluate")
        self.completions: list[Completion] = []
        self.tokens: list[Tokens] = []
        self._read: dict[Side, torch.Tensor] = {}
        per_round = max(1, config.batch_size // self.n)
        rounds = range(0, len(prompts), per_round)
        for start in reporter.track(rounds, f"eval {name}", total=len(rounds)):
            chosen = ids[start : start + per_round]
            these = seeds[start * self.n : (start + len(chosen)) * self.n]
            drawn = sample(trunk, role, chosen, settings, seeds=these, n=self.n, batch_size=config.batch_size)
            self.tokens += [Tokens(chosen[row // self.n], item.token_ids) for row, item in enumerate(drawn)]
            asked = self.prompts[start * self.n :][: len(drawn)]
            self.completions += [
                to_completion(trunk.chat, prompt, item, settings, seed=seed, model=trunk.source)
                for prompt, item, seed in zip(asked, drawn, these, strict=True)
            ]

    def _by_prompt(self, values: Sequence[float]) -> list[list[float]]:
        return [list(values[start : start + self.n]) for start in range(0, len(values), self.n)]

    def scores(self, reward: Reward) -> list[list[float]]:
        """Return a judge's scores by prompt."""
        return self._by_prompt(checked_scores(reward, self.prompts, self.completions))

    def lengths(self) -> list[list[float]]:
        """Return completion lengths in tokens by prompt."""
        return self._by_prompt([float(len(tokens.completion)) for tokens in self.tokens])

    def finish_reasons(self) -> dict[str, float]:
        """Return the share of each finish reason."""
        counts = Counter(completion.finish_reason for completion in self.completions)
        return {reason: counts[reason] / len(self.completions) for reason in ("stop", "length")}

    def texts(self) -> list[str]:
        """Return the completions' texts."""
        return [completion.message.content for completion in self.completions]

    def repetition(self) -> list[list[float]]:
        """Return each completion's share of repeated 4-grams, by prompt."""
        return self._by_prompt([repetition([text]) for text in self.texts()])

    def logprobs(self, side: "Side", config: EvaluateConfig) -> torch.Tensor:
        """Return (B, S) log-probabilities of the completion tokens under a side's model, read once."""
        if side in self._read:
            return self._read[side]
        trunk = side.trunk
        batch = pad(self.tokens, trunk.device)
        settings = config.compute

        def read(part: Batch) -> torch.Tensor:
            return completion_logprobs(
                trunk,
                side.role,
                part,
                temperature=config.sampling.temperature,
                chunk_tokens=settings.chunk_tokens,
            ).logprobs

        room: Any = {"max_tokens": settings.scoring_tokens, "padded": trunk.computes_padding}
        self._read[side] = by_microbatch(batch, read, **room).cpu()
        return self._read[side]

    def kl(self, reference: "Side", config: EvaluateConfig) -> list[list[float]]:
        """Return log pi - log pi_ref of each completion (k1, nats) by prompt; its mean is the sequence KL."""
        own, theirs = self.logprobs(self, config), self.logprobs(reference, config)
        return self._by_prompt((own - theirs).sum(1).tolist())

    def perplexity(self, reference: "Side", config: EvaluateConfig) -> float:
        """Return exp of the mean negative log-probability per completion token under the reference."""
        total = float(self.logprobs(reference, config).sum())
        count = sum(len(tokens.completion) for tokens in self.tokens)
        return float(torch.tensor(-total / count).exp())


def _plain(value: float) -> dict[str, float | None]:
    return Estimate(value, None, None).as_dict()


def _sample_lines(
    prompts: Sequence[Prompt],
    sides: dict[str, Side],
    scores: dict[str, dict[str, list[list[float]]]],
) -> list[str]:
    lines: list[str] = []
    for index, prompt in enumerate(prompts):
        # Step 0: an evaluation has no steps, but a run that goes on keeps or drops samples by their step.
        row: dict[str, Any] = {"step": 0, "prompt": prompt.messages[-1].content}
        for name, side in sides.items():
            row[name] = side.completions[index * side.n].message.content
            for judge, found in scores.items():
                row[f"{judge}_{name}"] = found[name][index][0]
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines

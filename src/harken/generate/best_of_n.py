"""Best of n: draw several completions, keep the one that a reward likes best, or one by lot that leans to the better.

No training is needed, and the cost is drawing: at n times the work, the KL to the model that draws is at most
log n - (n - 1) / n nats.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harken.config import BestOfConfig
from harken.core.best_of_n import best_of_n_kl, expected_best_of_n, soft_choice_logprobs
from harken.generate.sampling import generate
from harken.lm.samplers import Sampler
from harken.lm.trunk import Trunk
from harken.progress import QUIET, Reporter
from harken.protocols import Reward, checked_scores
from harken.records import Completion, Prompt
from harken.runs import derive_seed


@dataclass(frozen=True)
class BestOf:
    """What was kept, and what it is worth."""

    completions: list[Completion]
    """Kept ones, `completions_per_prompt` a prompt, prompt by prompt."""
    scores: list[float]
    """Theirs."""
    drawn_mean: float
    """Mean score of all that were drawn."""
    expected: dict[int, float]
    """Number of draws -> mean score of the best of so many, estimated without bias from all that were drawn."""
    kl_bound: float
    """Most KL, in nats, of the best of n to the model that draws."""


def best_of_n(
    trunk: Trunk,
    prompts: Sequence[Prompt],
    reward: Reward,
    config: BestOfConfig | None = None,
    *,
    role: str | None = None,
    model: str = "",
    reporter: Reporter = QUIET,
    sampler: Sampler | None = None,
) -> BestOf:
    """Draw `best_of` completions for each one that is kept.

    Args:
        trunk: base and roles.
        prompts: what is asked.
        reward: decides what is kept.
        config: settings.
        role: who writes; None is the base itself.
        model: reference stored in each completion; the trunk's source by default.
        reporter: shows progress.
        sampler: who draws; None is Harken's own sampler.

    Raises:
        DataError: a prompt leaves no room in the model's context for `max_new_tokens`.
        RewardError: the reward failed; the message names the prompt.
    """
    config = config or BestOfConfig()
    kept, n = config.completions_per_prompt, config.best_of
    drawing = config.model_copy(update={"completions_per_prompt": kept * n})
    drawn = generate(trunk, prompts, drawing, role=role, model=model, reporter=reporter, sampler=sampler)
    asked = [prompt for prompt in prompts for _ in range(kept * n)]
    scores = torch.tensor(checked_scores(reward, asked, drawn), dtype=torch.float64)
    groups = scores.reshape(-1, n)
    chosen = [group * n + place for group, place in enumerate(choose(groups, config.beta, config.seed))]
    by_prompt = scores.reshape(len(prompts), kept * n)
    sizes = sorted({1, *(2**power for power in range(1, n.bit_length()) if 2**power <= n), n})
    return BestOf(
        completions=[drawn[index] for index in chosen],
        scores=scores[chosen].tolist(),
        drawn_mean=float(scores.mean()),
        expected={size: float(expected_best_of_n(by_prompt, size).mean()) for size in sizes},
        kl_bound=best_of_n_kl(n),
    )


def choose(scores_GM: Tensor, beta: float, seed: int) -> list[int]:
    """Return which of M draws is kept in each of G groups.

    Args:
        scores_GM: (G, M) scores.
        beta: 0 keeps the first of the best; above, one is drawn in proportion to exp(score / beta).
        seed: decides these draws.
    """
    if beta == 0:
        return scores_GM.argmax(dim=1).tolist()
    cumulative = soft_choice_logprobs(scores_GM, beta).exp().cumsum(dim=1)
    draw = random.Random(derive_seed(seed, "choose"))
    uniforms = torch.tensor([[draw.random()] for _ in scores_GM], dtype=torch.float64)
    # The sum of all may be rounded to a little less than 1.
    return torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True).squeeze(1).tolist()

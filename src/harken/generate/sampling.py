"""Prompts to completions, one record each."""

from collections.abc import Sequence

from harken.config import GenerateConfig
from harken.lm.sample import completion_seeds, to_completion
from harken.lm.samplers import OwnSampler, Sampler
from harken.lm.trunk import Trunk
from harken.progress import QUIET, Reporter
from harken.records import Completion, Prompt, SamplingSettings


def generate(
    trunk: Trunk,
    prompts: Sequence[Prompt],
    config: GenerateConfig | None = None,
    *,
    role: str | None = None,
    model: str = "",
    reporter: Reporter = QUIET,
    sampler: Sampler | None = None,
) -> list[Completion]:
    """Draw `completions_per_prompt` completions of each prompt.

    Args:
        trunk: base and roles.
        prompts: what is asked.
        config: settings.
        role: who writes; None is the base itself.
        model: reference stored in each completion; the trunk's source by default.
        reporter: shows progress.
        sampler: who draws; None is Harken's own sampler.

    Returns: completions, prompt by prompt.

    Raises:
        DataError: a prompt leaves no room in the model's context for `max_new_tokens`.
    """
    config = config or GenerateConfig()
    settings = SamplingSettings(**config.sampling.model_dump())
    room = trunk.context_length - settings.max_new_tokens
    ids = [trunk.chat.encode_prompt(prompt, max_length=room) for prompt in prompts]
    n = config.completions_per_prompt
    seeds = completion_seeds(len(prompts) * n, config.seed, "generate")
    sampler = sampler or OwnSampler(trunk, config.batch_size)
    per_round = max(1, config.batch_size // n)
    rounds = range(0, len(prompts), per_round)
    completions: list[Completion] = []
    for start in reporter.track(rounds, "generate", total=len(rounds)):
        chosen = range(start, min(start + per_round, len(prompts)))
        these = seeds[start * n : start * n + len(chosen) * n]
        drawn = sampler(role, [ids[index] for index in chosen], settings, seeds=these, n=n)
        owners = [index for index in chosen for _ in range(n)]
        for offset, (index, item) in enumerate(zip(owners, drawn, strict=True)):
            seed = seeds[start * n + offset]
            completions.append(
                to_completion(trunk.chat, prompts[index], item, settings, seed=seed, model=model or trunk.source)
            )
    return completions

"""First steps of small runs, for tests of PPO's options and kin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harken.config import (
    PpoConfig,
    preset,
)
from harken.policy.ppo import prepare
from harken.policy.rollout import Rollout, draw_prompts, rollout, score, score_greedy
from harken.policy.update import PpoState, update
from harken.protocols import Reward
from harken.records import Completion, Prompt
from tests.policy import material


def small(name: str, **changes: Any) -> PpoConfig:
    """A kin's preset in the sizes of `material.ppo_config`: 4 prompts, 2 completions, minibatches of 4 if allowed."""
    base = material.ppo_config()
    kept = ("steps", "prompts_per_step", "completions_per_prompt", "sampling", "chat", "compute", "policy_optimizer")
    sizes = {key: getattr(base, key) for key in kept} | {"approx_kl_limit": 1e9, "num_samples": 2}
    batch = 8 if name in ("rloo", "remax") else 4
    settings: dict[str, Any] = {"minibatch_size": batch, "score": {"stop_penalty": "none", "overlong_buffer": 0}}
    return preset(name, **(sizes | settings | changes))


def start(model: Path, config: PpoConfig, reward: Reward = material.count_letter) -> tuple[PpoState, Rollout]:
    state = prepare(model, reward, config)
    return state, rollout(state.trunk, draw_prompts(material.prompts(), config, 0), config, step=0)


def learn(model: Path, config: PpoConfig, reward: Reward = material.count_letter) -> tuple[PpoState, dict[str, float]]:
    state, experience = start(model, config, reward)
    scores, baseline = score(experience, reward), score_greedy(experience, reward)
    return state, update(state, experience, scores, config, step=0, baseline=baseline)


def constant(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [3.1] * len(completions)


def lengths(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [float(len(item.message.content)) for item in completions]

"""Harken's side of ppo, grpo and rloo: `rollout`, `score`, `update`, the three parts of a step."""

from collections.abc import Sequence
from typing import Any

import torch
from common import group_of, now, token_reward
from harken_training import ALL_LAYERS, TUNES

from harken.config import ComputeConfig, LoraConfig, OptimizerConfig, PpoConfig, SamplingConfig, preset
from harken.config.ppo import FixedKl, ScoreConfig, ValueConfig
from harken.lm.batch import Tokens
from harken.lm.sample import Sampled
from harken.lm.trunk import Trunk
from harken.policy.ppo import prepare
from harken.policy.rollout import rollout, score
from harken.policy.update import update
from harken.protocols import Reward
from harken.records import Completion, Prompt
from harken.reward.model import RewardModel


class FreshReward:
    """A reward model that lives on the policy's base, with adapters and a given head, untrained."""

    def __init__(self, head: list[float], tune: LoraConfig, *, by_tokens: bool) -> None:
        """Keep the head.

        Args:
            head: its weights, the same as the peer's.
            tune: its adapters.
            by_tokens: read the tokens that were drawn, as TRL does, instead of encoding the completion's text anew.
        """
        self.head_weights = torch.tensor([head])
        self.tune = tune
        self.by_tokens = by_tokens

    def attach(self, trunk: Trunk) -> None:
        """Put the role on the base."""
        trunk.add_role("reward", self.tune, seed=1, head=True, reads_apart=True)
        set_head(trunk, "reward", self.head_weights)
        self.model = RewardModel(trunk, ComputeConfig())

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Return one score per completion."""
        if not self.by_tokens:
            return self.model(prompts, completions)
        chat = self.model.chat
        sequences = [
            Tokens(chat.encode_prompt(prompt), list(completion.token_ids or ()))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return self.model.score_tokens(sequences).tolist()


def set_head(trunk: Trunk, role: str, weights: torch.Tensor) -> None:
    """Set a role's head."""
    head = trunk.roles[role].head
    assert head is not None
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.zero_()


def free_reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Return one score per completion, from its tokens alone."""
    del prompts
    return [token_reward(completion.token_ids or ()) for completion in completions]


def settings(job: dict[str, Any], count: int) -> PpoConfig:
    """Return the settings: Harken's defaults where the peer has none of its own to match."""
    optimizer = OptimizerConfig(**job["optimizer"])
    # The proof of grpo and rloo compares the gradient of all weights, which is what the peer trains.
    tune = "full" if job["check"] and job["phase"] != "ppo" else job["tune"]
    shared: dict[str, Any] = {
        "steps": job["warmup"] + job["steps"],
        "prompts_per_step": count,
        "epochs": 1 if job["check"] else job["epochs"],
        "minibatch_size": count * job["group"],
        "sampling": SamplingConfig(max_new_tokens=job["new_tokens"]),
        "score": ScoreConfig(stop_penalty="none"),
        "tune": TUNES[tune],
        "policy_optimizer": optimizer,
        "compute": ComputeConfig(dtype=job["dtype"]),
    }
    if job["phase"] == "ppo":
        if job["check"] or tune == "full":
            # The proof compares the loss of a critic that is trained, and so does the row of full fine-tuning.
            shared |= {"value": ValueConfig(critic="own"), "critic_optimizer": optimizer}
        return PpoConfig(approx_kl_limit=None, kl=FixedKl(coef=0.05), **shared)
    return preset(job["phase"], completions_per_prompt=job["group"], **shared)


def online(job: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Take warm-up and timed iterations, each of all prompts."""
    prompts = [Prompt.model_validate(row["record"]) for row in data["rows"]]
    config = settings(job, len(prompts))
    reward: Reward = free_reward
    if job["phase"] == "ppo":
        adapters = config.tune if isinstance(config.tune, LoraConfig) else ALL_LAYERS
        reward = FreshReward(data["head"], adapters, by_tokens=job["check"])
    state = prepare("smollm2", reward, config)
    state.trunk.chat.stop_ids = frozenset({-1})  # no completion ends early, on either side
    if "critic" in state.optimizers:
        set_head(state.trunk, "critic", torch.tensor([data["head"]]))
    if job["check"]:
        return proof(job, data, state, prompts, reward, config)
    seconds: list[float] = []
    tokens: list[int] = []
    for step in range(config.steps):
        started = now()
        experience = rollout(state.trunk, prompts, config, step=step)
        scores = score(experience, reward)
        update(state, experience, scores, config, step=step)
        seconds.append(now() - started)
        tokens.append(int(experience.batch.lengths.sum()))
    facts = {"dtype": str(state.trunk.dtype).removeprefix("torch."), "tune": job["tune"], "epochs": config.epochs}
    return {"seconds": seconds, "tokens": tokens, "proof": {}, "settings": facts}


def proof(
    job: dict[str, Any], data: dict[str, Any], state: Any, prompts: list[Prompt], reward: Reward, config: PpoConfig
) -> dict[str, Any]:
    """Take one step on completions that are given, and return what the peer must find too."""
    texts = [text for row in data["rows"] for text in group_of(row["completion"], job["group"])]
    given = [Sampled(text, [0.0] * len(text), "length") for text in texts]
    started = now()
    experience = rollout(state.trunk, prompts, config, step=0, sampler=lambda *_, **__: given)
    scores = score(experience, reward)
    # Step 1: at step 0 `update` compares with what was sampled, and nothing was.
    metrics = update(state, experience, scores, config, step=1)
    found = {"score": metrics["score_mean"]}
    if job["phase"] == "ppo":
        found |= {
            "sequence KL": metrics["kl_sequence"],
            "mean -log p of a completion": -float(experience.old_logprobs.sum(1).mean()),
            "policy loss": metrics["policy_loss"],
            "value loss": metrics["value_loss"],
        }
    else:
        # TRL's RLOO sums over a completion's tokens, all of one length here, where Harken takes their mean.
        sums = job["new_tokens"] if job["phase"] == "rloo" else 1
        found["gradient norm"] = metrics["grad_norm_policy"] * sums
    tokens = int(experience.batch.lengths.sum())
    return {"seconds": [now() - started], "tokens": [tokens], "proof": found, "settings": {"tune": job["tune"]}}

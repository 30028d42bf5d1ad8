"""Self-tests of the first minute: each catches a mistake that otherwise shows only as a policy that learns nothing."""

import math
from typing import Any

import torch

from harken.config import MaskConfig
from harken.core.logprobs import token_logprobs
from harken.errors import SelfTestError
from harken.lm.forward import TOLERANCE
from harken.lm.trunk import Trunk
from harken.policy.rollout import Rollout

FOREIGN_TOLERANCE = {torch.float32: 0.05, torch.bfloat16: 0.2, torch.float16: 0.2}
"""The same where a foreign engine drew: it has kernels of its own, and a server perhaps another precision."""


@torch.no_grad()
def check_output_layer(trunk: Trunk) -> None:
    """Log-probabilities through our output layer equal those of the model's own forward pass.

    Catches an output layer with a scale or cap that `Trunk.logits_fn` does not know. Both read the same states: those
    of another computation of the layers differ by rounding, in bf16 by 0.35 nats for tokens as unlikely as these.
    """
    size = min(8, trunk.context_length)
    network: Any = trunk.network(None)
    ids = torch.arange(size, device=trunk.device)[None] % min(7, network.config.vocab_size)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    states = network.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours = token_logprobs(states, ids, mask, trunk.logits_fn(None)).logprobs[0, 1:]
    logits = network(input_ids=ids, use_cache=False).logits.float()
    theirs = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
    difference = float((ours - theirs).abs().mean())
    if not difference <= TOLERANCE[trunk.dtype]:
        raise SelfTestError(
            f"log-probabilities through the output layer differ from the model's own by {difference:.2g} nats; this "
            "model changes its logits in a way Harken does not know"
        )


def check_first_rollout(
    trunk: Trunk, experience: Rollout, *, foreign: bool = False, mask: MaskConfig | None = None
) -> None:
    """Before the first update: KL is 0, the sampler agrees with the scorer, prompts have one encoding.

    A masked policy starts as the reference over the tokens left to it: where these have the mass m of at least top_p,
    each of them is more likely by -log m.

    Args:
        trunk: base and roles.
        experience: of the first step.
        foreign: whether another engine drew, which is held to `FOREIGN_TOLERANCE`.
        mask: which tokens the policy may write; None = all.

    Raises:
        SelfTestError: one of them does not hold; the message names the likely cause.
    """
    inside = experience.batch.completion_mask
    count = inside.sum()
    limit = TOLERANCE[trunk.dtype]
    gain = experience.old_logprobs - experience.ref_logprobs
    if mask is not None:
        gain = gain - gain.clamp(0.0, -math.log(mask.top_p))
    kl = float((gain.abs() * inside).sum() / count)
    if not kl <= limit:
        raise SelfTestError(
            f"policy and reference differ by {kl:.2g} nats a token before any update, expected 0; the policy does not "
            "start as the reference, or dropout is on"
        )
    mismatch = float(((experience.sampler_logprobs - experience.old_logprobs).abs() * inside).sum() / count)
    limit = FOREIGN_TOLERANCE[trunk.dtype] if foreign else limit
    if not mismatch <= limit:
        cause = "temperature, positions or attention mask differ between them"
        if foreign:
            cause = (
                "the engine has other weights than the policy (is it the same base model?), or reports raw "
                "log-probabilities (start a server with --logprobs-mode processed_logprobs)"
            )
        raise SelfTestError(
            f"sampler and scorer log-probabilities differ by {mismatch:.2g} nats a token, expected at most {limit}; "
            f"{cause}"
        )
    check_layers(trunk, experience)
    check_boundaries(trunk, experience)


@torch.no_grad()
def check_layers(trunk: Trunk, experience: Rollout) -> None:
    """The reference's log-probabilities of the first completions equal those of the model's own forward pass.

    Catches a model whose layers Harken's forward pass for models built like llama does not compute as it does.
    """
    part = experience.batch.select(range(min(2, experience.batch.num_rows)))
    size, mask = part.ids.shape[1], part.completion_mask
    network: Any = trunk.network(None)
    states = network.base_model(input_ids=part.ids, use_cache=False).last_hidden_state
    sampling = experience.completions[0].sampling
    temperature = 1.0 if sampling is None else sampling.temperature
    theirs = token_logprobs(states, part.ids, mask, trunk.logits_fn(None), temperature=temperature).logprobs
    ours = experience.ref_logprobs[: part.num_rows, :size]
    difference = float(((ours - theirs).abs() * mask).sum() / mask.sum())
    if not difference <= TOLERANCE[trunk.dtype]:
        raise SelfTestError(
            f"log-probabilities differ from the model's own forward pass by {difference:.2g} nats a token, expected at "
            f"most {TOLERANCE[trunk.dtype]}; Harken computes this model's layers in another way than the model does"
        )


def check_boundaries(trunk: Trunk, experience: Rollout) -> None:
    """The tokens that PPO trains on begin with the same prompt tokens that the reward model reads.

    A prompt must encode to a prefix of what prompt plus completion encode to as one text, or the reward model scores
    other tokens than those sampled. Half of the completions may differ: sampled tokens need not be the canonical
    encoding of their text.
    """
    chat = trunk.chat
    crossed = 0
    for prompt, completion in zip(experience.prompts, experience.completions, strict=True):
        ids = chat.encode_prompt(prompt)
        whole = chat.tokenizer.encode(chat.render(prompt) + completion.message.content, add_special_tokens=False)
        crossed += whole[: len(ids)] != ids
    share = crossed / len(experience.prompts)
    if share > 0.5:
        raise SelfTestError(
            f"{share:.0%} of the prompts merge with their completions when encoded as one text; end prompts where the "
            "tokenizer ends a token (usually: no trailing space)"
        )


def check_first_update(trunk: Trunk, metrics: dict[str, float]) -> None:
    """On the first minibatch nothing was learned yet: the ratio is 1 and the approximate KL 0.

    Raises:
        SelfTestError: otherwise.
    """
    limit = TOLERANCE[trunk.dtype]
    if not (abs(metrics["ratio"] - 1.0) <= limit and metrics["approx_kl"] <= limit):
        raise SelfTestError(
            f"before any update the ratio is {metrics['ratio']:.4f} (expected 1) and the approximate KL "
            f"{metrics['approx_kl']:.2g} (expected 0); old and new log-probabilities come from different computations"
        )

"""Natural language policy optimization (NLPO, arXiv:2210.01241): PPO with a policy that may not write just anything.

An older copy of the policy, the mask role, says which tokens are likely enough; the policy's distribution is that of
its logits over these tokens only, when it writes and when it learns. The copy is renewed every so many iterations.
PPO's rollout, losses and KL are those of the masked policy.

The masked policy does not depend on the logits of the tokens outside, so nothing holds these down. They would come in
when the copy is renewed, and in the saved model, which has no mask; so one more term moves the policy's mass inside.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from harken.config import MaskConfig, Tune
from harken.core.aggregate import masked_sum
from harken.core.logprobs import TokenLogprobs
from harken.lm.checkpoint import load_tensors, save_tensors
from harken.lm.trunk import Mask, Trunk

MASK = "mask"
MASK_FILE = "mask.safetensors"


def add_mask(trunk: Trunk, policy: str, mask: MaskConfig | None, tune: Tune) -> None:
    """Give the policy its mask, made from a copy of it; nothing if there is to be none.

    Args:
        trunk: holds the policy and no other role yet: full copies of the base are made before adapters.
        policy: the role that learns.
        mask: settings; None = the policy writes what it likes.
        tune: what the policy trains.
    """
    if mask is None:
        return
    # Its own start does not matter: it takes the policy's weights at once.
    trunk.add_role(MASK, tune, seed=0)
    renew_mask(trunk, policy)
    trunk.roles[policy].mask = Mask(MASK, mask.top_p)


def outside_loss(
    read: TokenLogprobs, completion_mask: Tensor, denominator: float, mask: MaskConfig | None
) -> Tensor | float:
    """Return the term that moves mass inside: the token mean of -log of the mass there; 0 without a mask.

    Args:
        read: of the policy.
        completion_mask: (B, S) True = completion token.
        denominator: completion tokens in the whole batch of the optimizer step.
        mask: settings.
    """
    if mask is None or read.log_mass is None:
        return 0.0
    return -mask.inside_coef * masked_sum(read.log_mass, completion_mask, denominator)


def renew_mask(trunk: Trunk, policy: str) -> None:
    """Make the mask equal to the policy as it is now."""
    trunk.load_state(MASK, trunk.state(policy))


def renew_mask_if_due(trunk: Trunk, policy: str, mask: MaskConfig | None, step: int) -> None:
    """Renew the mask after every `refresh_every` iterations; `step` counts those that are done."""
    if mask is not None and step % mask.refresh_every == 0:
        renew_mask(trunk, policy)


def remove_mask(trunk: Trunk, policy: str, mask: MaskConfig | None) -> None:
    """Turn the masked policy into a plain one that writes as it would once the mask is renewed; for the end of a run.

    A mask that equals the policy leaves it the tokens of its own nucleus. So what has to be known beside the weights is
    `top_p` alone, and it goes into the generation config that is saved with them.
    """
    if mask is None:
        return
    trunk.roles[policy].mask = None
    generation: Any = trunk.network(policy).generation_config
    generation.do_sample, generation.top_p, generation.top_k = True, mask.top_p, 0


def save_mask(folder: Path, trunk: Trunk) -> None:
    """Write the mask into a checkpoint, where there is one."""
    if MASK in trunk.roles:
        save_tensors(folder / MASK_FILE, trunk.state(MASK))


def load_mask(folder: Path, trunk: Trunk) -> None:
    """Set the mask from a checkpoint, where there is one."""
    if MASK in trunk.roles:
        trunk.load_state(MASK, load_tensors(folder / MASK_FILE))

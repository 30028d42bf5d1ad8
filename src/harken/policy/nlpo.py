"""Natural language policy optimization (NLPO, arXiv:2210.01241): PPO that does not try just any token.

An older copy of the policy, the mask role, says which tokens are likely enough; rollouts are drawn from the policy over
these tokens only. The copy is renewed every so many iterations.

What learns is the policy over all tokens, as it is saved in the end: it is read as in PPO, and each drawn token counts
with the weight policy / sampler, the mass that the mask leaves. So the gradient is that of PPO with an advantage of 0
for tokens outside. (The code of RL4LMs learns the distribution over the tokens inside; the logits outside are then free
to drift, and come in when the mask is renewed: docs/results.md, RandomWalks.)
"""

from pathlib import Path

from harken.config import MaskConfig, Tune
from harken.lm.checkpoint import load_tensors, save_tensors
from harken.lm.trunk import Mask, Role, Trunk

MASK, MASKED = "mask", "masked"
"""The older copy, and the policy as it draws."""

MASK_FILE = "mask.safetensors"


def add_mask(trunk: Trunk, policy: str, mask: MaskConfig | None, tune: Tune) -> None:
    """Add the mask and the policy that it masks; nothing if there is to be none.

    Args:
        trunk: holds the policy and no other role yet: full copies of the base are made before adapters.
        policy: the role that learns.
        mask: settings; None = the policy draws what it likes.
        tune: what the policy trains.
    """
    if mask is None:
        return
    # Its own start does not matter: it takes the policy's weights at once.
    trunk.add_role(MASK, tune, seed=0)
    renew_mask(trunk, policy)
    own = trunk.roles[policy]
    through = policy if own.lora is not None else None
    trunk.roles[MASKED] = Role(full_model=own.full_model, through=through, mask=Mask(MASK, mask.top_p))


def drawing_role(trunk: Trunk, policy: str) -> str:
    """Return who draws the rollouts of a policy."""
    return MASKED if MASKED in trunk.roles else policy


def renew_mask(trunk: Trunk, policy: str) -> None:
    """Make the mask equal to the policy as it is now."""
    trunk.load_state(MASK, trunk.state(policy))


def renew_mask_if_due(trunk: Trunk, policy: str, mask: MaskConfig | None, step: int) -> None:
    """Renew the mask after every `refresh_every` iterations; `step` counts those that are done."""
    if mask is not None and step % mask.refresh_every == 0:
        renew_mask(trunk, policy)


def save_mask(folder: Path, trunk: Trunk) -> None:
    """Write the mask into a checkpoint, where there is one."""
    if MASK in trunk.roles:
        save_tensors(folder / MASK_FILE, trunk.state(MASK))


def load_mask(folder: Path, trunk: Trunk) -> None:
    """Set the mask from a checkpoint, where there is one."""
    if MASK in trunk.roles:
        trunk.load_state(MASK, load_tensors(folder / MASK_FILE))

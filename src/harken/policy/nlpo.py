"""Natural language policy optimization (NLPO, arXiv:2210.01241): PPO with a policy that may not write just anything.

An older copy of the policy, the mask role, says which tokens are likely enough; the policy's distribution is that of
its logits over these tokens only, when it writes and when it learns. The copy is renewed every so many iterations.
All of it is here and in the role's `Mask` (`lm.trunk`): PPO's rollout, losses and KL are those of the masked policy.
"""

from pathlib import Path

from harken.config import MaskConfig, Tune
from harken.lm.checkpoint import load_tensors, save_tensors
from harken.lm.trunk import Mask, Trunk

MASK = "mask"
MASK_FILE = "mask.safetensors"


def add_mask(trunk: Trunk, role: str, mask: MaskConfig | None, tune: Tune) -> None:
    """Give a role its mask, made from a copy of it; nothing if there is to be none.

    Args:
        trunk: holds the role and no others yet: full copies of the base are made before adapters.
        role: the policy.
        mask: settings; None = the policy writes what it likes.
        tune: what the policy trains.
    """
    if mask is None:
        return
    # Its own start does not matter: it takes the policy's weights at once.
    trunk.add_role(MASK, tune, seed=0)
    renew_mask(trunk, role)
    trunk.roles[role].mask = Mask(MASK, mask.top_p)


def renew_mask(trunk: Trunk, role: str) -> None:
    """Make the mask role equal to the policy as it is now."""
    trunk.load_state(MASK, trunk.state(role))


def renew_mask_if_due(trunk: Trunk, role: str, mask: MaskConfig | None, step: int) -> None:
    """Renew the mask after every `refresh_every` iterations; `step` counts those that are done."""
    if mask is not None and step % mask.refresh_every == 0:
        renew_mask(trunk, role)


def save_mask(folder: Path, trunk: Trunk) -> None:
    """Write the mask role into a checkpoint, where there is one."""
    if MASK in trunk.roles:
        save_tensors(folder / MASK_FILE, trunk.state(MASK))


def load_mask(folder: Path, trunk: Trunk) -> None:
    """Set the mask role from a checkpoint, where there is one."""
    if MASK in trunk.roles:
        trunk.load_state(MASK, load_tensors(folder / MASK_FILE))

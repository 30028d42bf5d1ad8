"""A critic that is a linear head on states that do not change, fitted by least squares instead of by gradients."""

import torch
from torch import Tensor, nn

from harken.config import ValueConfig
from harken.core.ridge import Observations, no_observations, ridge_head, with_batch
from harken.lm.trunk import Trunk
from harken.policy.rollout import CRITIC


class HeadCritic:
    """What the head has seen, and the fit to it; saves and loads as tensors."""

    def __init__(self, trunk: Trunk, settings: ValueConfig) -> None:
        """Set the head to 0: before the first rollout nothing is foreseen.

        Args:
            trunk: holds the critic, whose body is frozen.
            settings: how much is fitted, and how long what was seen counts.
        """
        head = trunk.roles[CRITIC].head
        assert isinstance(head, nn.Linear), "a critic has a linear head"
        self.head = head
        self.settings = settings
        self._seen = no_observations(trunk.hidden_size, trunk.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    @torch.no_grad()
    def fit(self, states: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float]:
        """Set the head to the best one for this rollout and, with less weight, those before it.

        Args:
            states: (B, S, H), before each completion token.
            returns: (B, S), reward units.
            mask: (B, S) bool, True = completion token.

        Returns: `value_loss` of the new head on this rollout.
        """
        x, y = states[mask].float(), returns[mask]
        self._seen = with_batch(self._seen, x, y, decay=self.settings.fit_decay)
        weight, bias = ridge_head(self._seen, ridge=self.settings.fit_ridge)
        self.head.weight.copy_(weight[None])
        self.head.bias.copy_(bias)
        return {"value_loss": 0.5 * float((self.head(x)[:, 0] - y).square().mean())}

    def state(self) -> dict[str, Tensor]:
        """Return what it has seen as named CPU tensors."""
        return {name: value.cpu() for name, value in self._seen._asdict().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        device = self.head.weight.device
        self._seen = Observations(**{name: value.to(device) for name, value in tensors.items()})

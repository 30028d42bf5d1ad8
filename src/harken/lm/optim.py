"""AdamW with warm-up, decay, gradient clipping, fp32 masters for bf16 weights, and an average of the weights."""

import math

import torch
from torch import Tensor, nn

from harken.config import OptimizerConfig


class Optimizer:
    """Steps a set of named parameters; its whole state saves and loads as tensors."""

    def __init__(self, parameters: dict[str, nn.Parameter], settings: OptimizerConfig, total_steps: int) -> None:
        """Make masters where weights are not fp32.

        Args:
            parameters: by name; the names key the saved state.
            settings: rates, decay, clipping.
            total_steps: optimizer steps of the whole run, for the schedule.
        """
        self.parameters = parameters
        self.settings = settings
        self.total_steps = total_steps
        self.steps = 0
        # A bf16 weight has 8 significant bits: an update below 1/256 of it would be lost without a master.
        self._masters = {
            name: parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
            for name, parameter in parameters.items()
        }
        self._averages = {} if settings.ema_decay is None else self._copies()
        self._adam = torch.optim.AdamW(
            self._masters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def learning_rate(self) -> float:
        """Return the rate of the coming step."""
        settings = self.settings
        warmup = math.ceil(settings.warmup_fraction * self.total_steps)
        if self.steps < warmup:
            return settings.learning_rate * (self.steps + 1) / warmup
        progress = min(1.0, (self.steps - warmup) / max(1, self.total_steps - warmup))
        match settings.schedule:
            case "constant":
                factor = 1.0
            case "linear":
                factor = 1.0 - progress
            case "cosine":
                factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        return settings.learning_rate * factor

    def step(self) -> float:
        """Clip, step, clear the gradients; return the gradient norm before clipping."""
        for name, parameter in self.parameters.items():
            if self._masters[name] is not parameter and parameter.grad is not None:
                # One of the two at a time, so that they never exist all twice.
                self._masters[name].grad, parameter.grad = parameter.grad.float(), None
        norm = nn.utils.clip_grad_norm_(self._masters.values(), self.settings.max_grad_norm)
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate()
        self._adam.step()
        self.steps += 1
        with torch.no_grad():
            for name, average in self._averages.items():
                average.lerp_(self._masters[name], 1.0 - self._share_kept())
            for name, parameter in self.parameters.items():
                if self._masters[name] is not parameter:
                    parameter.copy_(self._masters[name])
                parameter.grad = None
                self._masters[name].grad = None
        return float(norm)

    def clear(self) -> None:
        """Drop the gradients without a step."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _copies(self) -> dict[str, Tensor]:
        return {name: master.detach().clone() for name, master in self._masters.items()}

    def _share_kept(self) -> float:
        """Return what the average keeps of itself: less at first, so that the start's weights do not linger."""
        decay = self.settings.ema_decay
        assert decay is not None, "averages exist only with a decay"
        return min(decay, (self.steps - 1) / self.steps)

    @torch.no_grad()
    def finish(self, *, stopped_early: bool = False) -> None:
        """Put the average into the weights, where one is kept; for the end of a run, after the last step.

        Args:
            stopped_early: fewer steps than planned were right, as where PPO's KL budget was spent.
        """
        planned = self.steps == self.total_steps
        assert planned or stopped_early, f"{self.steps} optimizer steps, planned {self.total_steps}"
        for name, average in self._averages.items():
            self.parameters[name].copy_(average)

    def state(self) -> dict[str, Tensor]:
        """Return moments, masters, averages and the step count as named CPU tensors."""
        tensors = {"steps": torch.tensor(self.steps)}
        for name, master in self._masters.items():
            moments = self._adam.state.get(master, {})
            for key in ("exp_avg", "exp_avg_sq", "step"):
                if key in moments:
                    tensors[f"{name}::{key}"] = moments[key].detach().to("cpu", copy=True)
            if master is not self.parameters[name]:
                tensors[f"{name}::master"] = master.detach().to("cpu", copy=True)
            if name in self._averages:
                tensors[f"{name}::average"] = self._averages[name].to("cpu", copy=True)
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.steps = int(tensors["steps"])
        with torch.no_grad():
            for name, master in self._masters.items():
                if f"{name}::master" in tensors:
                    master.copy_(tensors[f"{name}::master"])
                if name in self._averages:
                    self._averages[name].copy_(tensors[f"{name}::average"])
                moments = {
                    key: tensors[f"{name}::{key}"].clone()
                    for key in ("exp_avg", "exp_avg_sq", "step")
                    if f"{name}::{key}" in tensors
                }
                if moments:
                    self._adam.state[master] = {key: moment.to(master.device) for key, moment in moments.items()}

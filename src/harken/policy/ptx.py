"""PPO-ptx: the policy goes on imitating demonstrations while it learns from rewards (arXiv:2203.02155)."""

import math
from pathlib import Path

import torch
from torch import nn

from harken.config import PpoConfig, SftConfig
from harken.core.sft_loss import completion_nll
from harken.datasets import read_demonstrations
from harken.lm.batch import pad
from harken.lm.forward import completion_logprobs
from harken.lm.optim import Optimizer
from harken.lm.trunk import Trunk
from harken.policy.rollout import POLICY, in_laps
from harken.policy.sft import check_stop_labels, encode


class PtxMix:
    """Adds the gradients of a batch of demonstrations to those of the policy, once an optimizer step."""

    def __init__(self, trunk: Trunk, config: PpoConfig) -> None:
        """Read and encode the demonstrations with split `train`.

        Raises:
            DataError: none, or one longer than `max_length`.
        """
        found = [item for item in read_demonstrations(Path(config.ptx.data)) if item.split == "train"]
        self._sequences = encode(trunk, found, SftConfig(max_length=config.max_length))
        check_stop_labels(trunk, self._sequences)
        self._config = config

    def add_gradients(self, trunk: Trunk, optimizer: Optimizer) -> dict[str, float]:
        """Add them, and return the mean loss per completion token as `ptx_loss`.

        Args:
            trunk: with the role `policy`, whose gradients of this optimizer step are there.
            optimizer: of the policy; its step count says which demonstrations come next.
        """
        config, settings = self._config, self._config.ptx
        start = optimizer.steps * settings.batch_size
        rows = in_laps(len(self._sequences), start, settings.batch_size, config.seed, "ptx")
        whole = pad([self._sequences[row] for row in rows], trunk.device)
        before: dict[str, torch.Tensor] = {}
        if settings.relative:
            before = _take_gradients(optimizer.parameters)
        total, denominator = 0.0, float(whole.completion_mask.sum())
        for group in trunk.microbatches(whole.lengths.tolist(), config.compute.microbatch_tokens):
            part = whole.select(group)
            read = completion_logprobs(trunk, POLICY, part, chunk_tokens=config.compute.chunk_tokens)
            loss = completion_nll(read.logprobs, part.completion_mask, denominator).loss
            torch.autograd.backward(loss if settings.relative else settings.coef * loss)
            total += float(loss.detach())
        if settings.relative:
            own = _take_gradients(optimizer.parameters)
            scale = settings.coef * _norm(before) / max(_norm(own), 1e-12)
            for name, parameter in optimizer.parameters.items():
                parts = [x for x in (before.get(name), scale * own[name] if name in own else None) if x is not None]
                parameter.grad = torch.stack(parts).sum(0) if parts else None
        return {"ptx_loss": total}


def _take_gradients(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    taken = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    for value in parameters.values():
        value.grad = None
    return taken


def _norm(gradients: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in gradients.values()))

"""Value checks of the losses on preference pairs; see checks.py."""

import math
from types import ModuleType

import torch
from torch import Tensor

from tests.core.samples import close
from tests.reference import preference


def _dpo(module: ModuleType, pairs: list[tuple[float, ...]], beta: float, denominator: float) -> dict[str, Tensor]:
    """Loss and metrics of (chosen, rejected, reference chosen, reference rejected, label, weight) pairs."""
    chosen, rejected, ref_chosen, ref_rejected, labels, weights = torch.tensor(pairs, dtype=torch.float64).T
    result = module.dpo_loss(
        chosen,
        rejected,
        ref_chosen,
        ref_rejected,
        beta=beta,
        soft_labels_P=labels,
        weights_P=weights,
        denominator=denominator,
    )
    return {"loss": result.loss, **result.metrics}


def check_dpo(module: ModuleType) -> None:
    # beta 1/2. Pair 1: rewards (ln 9 - 0) / 2 = ln 3 and (-4 - -4) / 2 = 0, sigmoid(ln 3) = 3/4, label .9.
    # Pair 2: rewards 1 and 1, weight 2: 2 ln 2. Pair 3: rewards -1 and 0: log(1 + e).
    first = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    pairs = [
        (math.log(9) - 7.0, -4.0, -7.0, -4.0, 0.9, 1.0),
        (-3.0, -8.0, -5.0, -10.0, 1.0, 2.0),
        (-6.0, -1.0, -4.0, -1.0, 1.0, 1.0),
    ]
    result = _dpo(module, pairs, beta=0.5, denominator=4.0)
    close(result["loss"], (first + 2 * math.log(2) + math.log(1 + math.e)) / 4)
    close(result["accuracy"], (1 + 2 * 0.5 + 0) / 4)
    close(result["reward_margin"], (math.log(3) + 0 - 1) / 4)
    close(result["chosen_reward"], (math.log(3) + 2 - 1) / 4)
    close(result["rejected_reward"], (0 + 2 + 0) / 4)
    # Without labels and weights all are 1: ln 4/3 + ln 2 + log(1 + e).
    chosen, rejected, ref_chosen, ref_rejected, _, _ = torch.tensor(pairs, dtype=torch.float64).T
    plain = module.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5, denominator=3.0)
    close(plain.loss, (math.log(4 / 3) + math.log(2) + math.log(1 + math.e)) / 3)
    close(plain.metrics["accuracy"], 1.5 / 3)


def check_dpo_at_random(module: ModuleType) -> None:
    generator = torch.Generator().manual_seed(17)
    logprobs = torch.randn(9, 4, generator=generator, dtype=torch.float64) * 3 - 8
    others = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    pairs = [(*a, *b) for a, b in zip(logprobs.tolist(), others.tolist(), strict=True)]
    for beta in (0.1, 1.0, 2.5):
        expected = preference.dpo(pairs, beta)
        actual = _dpo(module, pairs, beta, float(others[:, 1].sum()))
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            close(actual[name], value)


def check_dpo_gradient(module: ModuleType) -> None:
    # At policy = reference d loss / d h = sigmoid(0) - p = -1/2, and h = beta (chosen - rejected).
    values = torch.full((4, 2), -3.0, dtype=torch.float64, requires_grad=True)
    chosen, rejected, ref_chosen, ref_rejected = values
    module.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.4, denominator=2).loss.backward()
    assert values.grad is not None
    close(values.grad, [[-0.1, -0.1], [0.1, 0.1], [0.0, 0.0], [0.0, 0.0]])

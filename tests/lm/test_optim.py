"""The optimizer: torch's AdamW where weights are fp32, and nothing lost where they are bf16."""

import math

import pytest
import torch
from torch import nn

from harken.config import OptimizerConfig
from harken.lm.optim import Optimizer

CONSTANT = OptimizerConfig(learning_rate=0.01, warmup_fraction=0.0, schedule="constant")


def _parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype)) for name in ("a", "b")}


def _set_gradients(parameters: dict[str, nn.Parameter], step: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters.values():
        parameter.grad = (torch.randn(3, 4, generator=generator) * size).to(parameter.dtype)


def _rates(settings: OptimizerConfig, total: int) -> list[float]:
    parameters = _parameters()
    optimizer = Optimizer(parameters, settings, total)
    rates: list[float] = []
    for step in range(total):
        rates.append(optimizer.learning_rate())
        _set_gradients(parameters, step)
        optimizer.step()
    return rates


def test_fp32_steps_are_those_of_torchs_adamw() -> None:
    settings = OptimizerConfig(
        learning_rate=0.02,
        betas=(0.8, 0.9),
        eps=1e-3,
        weight_decay=0.1,
        max_grad_norm=1.5,
        warmup_fraction=0.0,
        schedule="linear",
    )
    ours, theirs = _parameters(), _parameters()
    optimizer = Optimizer(ours, settings, 10)
    adam = torch.optim.AdamW(theirs.values(), lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, foreach=False)
    for step in range(10):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        squares = sum(float((value.grad.double() ** 2).sum()) for value in theirs.values() if value.grad is not None)
        nn.utils.clip_grad_norm_(theirs.values(), 1.5)
        adam.param_groups[0]["lr"] = 0.02 * (1 - step / 10)
        adam.step()
        assert optimizer.step() == pytest.approx(math.sqrt(squares), rel=1e-5)
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name])


def test_the_first_step_by_hand() -> None:
    # Adam's first step is lr * g / (|g| + eps) = lr * sign(g); decay takes lr * 0.1 of the weight before it.
    settings = CONSTANT.model_copy(update={"weight_decay": 0.1, "max_grad_norm": 100.0})
    weight = nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = Optimizer({"w": weight}, settings, 1)
    weight.grad = torch.tensor([0.5, -4.0])
    assert optimizer.step() == pytest.approx(math.sqrt(16.25))
    assert weight.tolist() == pytest.approx([2.0 - 0.002 - 0.01, -3.0 + 0.003 + 0.01], rel=1e-6)
    assert weight.grad is None


def test_a_bf16_weight_with_master_keeps_updates_that_bf16_alone_loses() -> None:
    # Near 1.0 neighboring bf16 numbers lie 1/128 (above) apart; 20 steps of 0.001 add up to 0.02, one and a half of
    # which plain bf16 would drop at every step.
    settings = CONSTANT.model_copy(update={"learning_rate": 0.001})
    kept, plain = (nn.Parameter(torch.ones(8, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = Optimizer({"w": kept}, settings, 20)
    adam = torch.optim.AdamW([plain], lr=0.001, weight_decay=0.0, foreach=False)
    for _ in range(20):
        kept.grad, plain.grad = -torch.ones_like(kept), -torch.ones_like(plain)
        optimizer.step()
        adam.step()
    assert plain.tolist() == [1.0] * 8
    # 1.02 lies between 1 + 2/128 = 1.0156 and 1 + 3/128 = 1.0234; the latter is nearer.
    assert kept.tolist() == [1.0234375] * 8
    assert kept.dtype == torch.bfloat16
    assert kept.grad is None


def test_large_gradients_are_scaled_to_the_global_norm_and_small_ones_left() -> None:
    # Two parameters with gradients 3 and 4: norm 5, clipped to 1: 0.6 and 0.8. The first moments are 0.1 of those.
    for size, expected in ((1.0, (0.06, 0.08)), (0.1, (0.03, 0.04))):
        parameters = {name: nn.Parameter(torch.zeros(1)) for name in ("a", "b")}
        optimizer = Optimizer(parameters, CONSTANT, 1)
        parameters["a"].grad, parameters["b"].grad = torch.tensor([3.0 * size]), torch.tensor([4.0 * size])
        assert optimizer.step() == pytest.approx(5.0 * size)
        state = optimizer.state()
        assert [float(state[f"{name}::exp_avg"]) for name in ("a", "b")] == pytest.approx(expected, rel=1e-4)


def test_the_rate_rises_to_its_peak_in_the_warm_up_and_falls_to_nearly_nothing() -> None:
    # 10 of 50 steps are warm-up; 40 are left: the rate falls by 1/40 of the peak a step.
    rates = _rates(OptimizerConfig(learning_rate=1.0, warmup_fraction=0.2, schedule="linear"), 50)
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([1 - step / 40 for step in range(40)])


def test_the_cosine_is_half_way_in_the_middle() -> None:
    rates = _rates(OptimizerConfig(learning_rate=2.0, warmup_fraction=0.1, schedule="cosine"), 100)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[10 + 45] == pytest.approx(1.0)
    assert rates[10 + 30] == pytest.approx(1.0 + math.cos(math.pi / 3))
    # The last step is 1/90 away from the end: 1 + cos(pi - x) = x^2 / 2.
    assert rates[-1] == pytest.approx((math.pi / 90) ** 2 / 2, rel=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_constant_rate_stays_and_no_warm_up_starts_at_the_peak() -> None:
    assert _rates(CONSTANT, 5) == [0.01] * 5
    warm = CONSTANT.model_copy(update={"warmup_fraction": 0.5})
    assert _rates(warm, 6) == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0.01])
    assert _rates(OptimizerConfig(learning_rate=1.0, warmup_fraction=0.0), 4) == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_no_rate_is_zero_or_above_the_peak(schedule: str, warmup: float, total: int) -> None:
    settings = OptimizerConfig.model_validate({"learning_rate": 0.5, "warmup_fraction": warmup, "schedule": schedule})
    assert all(0 < rate <= 0.5 for rate in _rates(settings, total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_after_loading_a_state_are_bit_for_bit_those_without_a_stop(dtype: torch.dtype) -> None:
    settings = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, warmup_fraction=0.3, schedule="cosine")
    straight = _parameters(dtype)
    optimizer = Optimizer(straight, settings, 10)
    for step in range(4):
        _set_gradients(straight, step)
        optimizer.step()
    resumed = {name: nn.Parameter(value.detach().clone()) for name, value in straight.items()}
    second = Optimizer(resumed, settings, 10)
    second.load_state(optimizer.state())
    for step in range(4, 10):
        _set_gradients(straight, step)
        optimizer.step()
    assert second.steps == 4
    for step in range(4, 10):
        _set_gradients(resumed, step)
        second.step()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    ours, theirs = second.state(), optimizer.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.endswith("::master") for name in ours) == (dtype == torch.bfloat16)


def test_a_state_does_not_change_with_later_steps() -> None:
    parameters = _parameters()
    optimizer = Optimizer(parameters, CONSTANT, 3)
    _set_gradients(parameters, 0)
    optimizer.step()
    state = optimizer.state()
    kept = {name: value.clone() for name, value in state.items()}
    _set_gradients(parameters, 1)
    optimizer.step()
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_a_fresh_optimizer_saves_and_loads_before_its_first_step() -> None:
    optimizer = Optimizer(_parameters(), CONSTANT, 3)
    optimizer.load_state(optimizer.state())
    assert optimizer.steps == 0


def test_a_parameter_without_gradient_stays() -> None:
    parameters = _parameters()
    before = parameters["b"].detach().clone()
    optimizer = Optimizer(parameters, CONSTANT, 3)
    _set_gradients({"a": parameters["a"]}, 0)
    optimizer.step()
    assert torch.equal(parameters["b"], before)
    second = Optimizer(_parameters(), CONSTANT, 3)
    second.load_state(optimizer.state())
    assert second.state().keys() == optimizer.state().keys()


def _steps(parameters: dict[str, nn.Parameter], optimizer: Optimizer, first: int, end: int) -> list[torch.Tensor]:
    """Take steps and return the weight `a` after each."""
    weights: list[torch.Tensor] = []
    for step in range(first, end):
        _set_gradients(parameters, step)
        optimizer.step()
        weights.append(parameters["a"].detach().clone())
    return weights


AVERAGED = CONSTANT.model_copy(update={"ema_decay": 0.6})


def test_the_average_is_the_mean_of_the_first_weights_and_then_moves_by_its_decay() -> None:
    parameters = _parameters()
    optimizer = Optimizer(parameters, AVERAGED, 4)
    first, second, third, fourth = _steps(parameters, optimizer, 0, 4)
    after_two = (first + second) / 2
    after_three = 0.6 * after_two + 0.4 * third  # 2/3 would be the mean; the decay is less
    expected = 0.6 * after_three + 0.4 * fourth
    assert torch.equal(parameters["a"], fourth)
    optimizer.finish(stopped_early=True)
    assert torch.allclose(parameters["a"], expected, atol=1e-7)
    assert not torch.allclose(parameters["a"], fourth, atol=1e-3)


def test_without_a_decay_the_last_weights_stay() -> None:
    parameters = _parameters()
    optimizer = Optimizer(parameters, CONSTANT, 3)
    last = _steps(parameters, optimizer, 0, 3)[-1]
    optimizer.finish(stopped_early=True)
    assert torch.equal(parameters["a"], last)
    assert not any(name.endswith("::average") for name in optimizer.state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_goes_on_bit_for_bit_after_loading(dtype: torch.dtype) -> None:
    straight = _parameters(dtype)
    optimizer = Optimizer(straight, AVERAGED, 8)
    _steps(straight, optimizer, 0, 3)
    resumed = {name: nn.Parameter(value.detach().clone()) for name, value in straight.items()}
    second = Optimizer(resumed, AVERAGED, 8)
    second.load_state(optimizer.state())
    for parameters, one in ((straight, optimizer), (resumed, second)):
        _steps(parameters, one, 3, 8)
        one.finish(stopped_early=True)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_averages_of_bf16_weights_are_kept_in_fp32() -> None:
    parameters = _parameters(torch.bfloat16)
    optimizer = Optimizer(parameters, AVERAGED, 3)
    _steps(parameters, optimizer, 0, 2)
    assert optimizer.state()["a::average"].dtype == torch.float32
    optimizer.finish(stopped_early=True)
    assert parameters["a"].dtype == torch.bfloat16
    assert torch.equal(parameters["a"], optimizer.state()["a::average"].bfloat16())

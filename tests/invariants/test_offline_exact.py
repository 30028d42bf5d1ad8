"""ILQL, best-of-n and choosing by lot against what enumeration and dynamic programming give.

In the enumerable world every text is a path through a tree. Where all texts are in the data equally often, Q of a token
is the discounted value of the state behind it, and V of a state the expectile of Q over its tokens, from the last token
back to the first: known exactly, in fp64, without any of Harken's losses.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harken.config import (
    BestOfConfig,
    ChatConfig,
    ComputeConfig,
    FullConfig,
    IlqlConfig,
    IlqlLossConfig,
    OptimizerConfig,
    SamplingConfig,
)
from harken.core.best_of_n import best_of_n_kl, best_of_n_logprobs
from harken.generate.best_of_n import best_of_n
from harken.lm.batch import Tokens, pad
from harken.lm.forward import completion_logprobs
from harken.lm.load import load_model
from harken.lm.q_heads import GUIDED, add_guided_role, at_completions
from harken.lm.trunk import Trunk
from harken.policy.ilql import POLICY, IlqlState, Scored, prepare, train_step
from tests.invariants.toy import START, Optimum, World

CHAT = ChatConfig(template="raw")
COMPUTE = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=65536, chunk_tokens=65536)
GAMMA, EXPECTILE = 0.9, 0.8


def _expectile(values: Tensor) -> Tensor:
    """Return v with tau E[(x - v)+] = (1 - tau) E[(v - x)+] over the last dimension, by bisection."""
    low, high = values.amin(-1), values.amax(-1)
    for _ in range(80):
        middle = (low + high) / 2
        errors = values - middle[..., None]
        pull = torch.where(errors > 0, EXPECTILE, 1 - EXPECTILE).double().mul(errors).sum(-1)
        low, high = torch.where(pull > 0, middle, low), torch.where(pull > 0, high, middle)
    return (low + high) / 2


def _exact(world: World) -> tuple[list[Tensor], list[Tensor]]:
    """Return Q and V by place: of each beginning, Q (V, ..., V) of its last token and V of what stands before it."""
    scores = torch.tensor([world.value(sequence) for sequence in world.sequences()], dtype=torch.float64)
    q, v = [scores.reshape((world.num_tokens,) * world.length)], [torch.zeros(0)]
    for _ in range(world.length - 1):
        v.insert(0, _expectile(q[0]))
        q.insert(0, GAMMA * v[0])
    v.insert(0, _expectile(q[0]))
    return q, v[:-1]


def _learn(world: World, folder: Path, steps: int) -> tuple[IlqlState, Scored]:
    settings = IlqlLossConfig(
        gamma=GAMMA, expectile=EXPECTILE, cql_coef=0.0, awac_coef=1.0, target_rate=0.2, target_every=1
    )
    config = IlqlConfig(
        loss=settings,
        tune=FullConfig(),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        head_optimizer=OptimizerConfig(learning_rate=4e-3),
        chat=CHAT,
        compute=COMPUTE,
    )
    state = prepare(world.save_model(folder, seed=0), config, steps)
    tokens = [Tokens([START], list(sequence)) for sequence in world.sequences()]
    everything = Scored(tokens, torch.tensor([world.value(sequence) for sequence in world.sequences()]))
    for step in range(steps):
        train_step(state, everything, config, step=step)
    return state, everything


@pytest.mark.slow
@torch.no_grad()
def test_ilql_learns_the_q_and_v_of_dynamic_programming_and_writes_by_them(tmp_path: Path) -> None:
    world = World(num_tokens=4, length=3)
    with torch.enable_grad():
        state, everything = _learn(world, tmp_path, steps=500)
    exact_q, exact_v = _exact(world)
    batch = pad(everything.tokens)
    hidden = state.trunk.hidden(POLICY, batch)
    places = torch.tensor(world.sequences())
    for head in state.heads.q.both:
        learned = at_completions(head, hidden, batch.ids, batch.completion_mask)[:, 1:]
        for place in range(world.length):
            expected = exact_q[place][tuple(places[:, : place + 1].T)].float()
            # Values from -1.9 to 2.0, one network for all of them.
            torch.testing.assert_close(learned[:, place], expected, rtol=0.0, atol=0.05)  # noise of the last steps
    learned = at_completions(state.heads.v, hidden, batch.ids, batch.completion_mask)[:, 1:]
    for place in range(world.length):
        expected = exact_v[place][tuple(places[:, :place].T)].float()
        torch.testing.assert_close(learned[:, place], expected.expand(len(places)), rtol=0.0, atol=0.05)  # as above
    # The data's policy is uniform, so the guided one is the softmax of beta Q, token by token.
    beta = 4.0
    role = add_guided_role(state.trunk, POLICY, state.targets, beta)
    written = completion_logprobs(state.trunk, role, batch).logprobs.sum(1)
    tables = [(beta * q).log_softmax(-1) for q in exact_q]
    wanted = sum(tables[place][tuple(places[:, : place + 1].T)] for place in range(world.length))
    assert isinstance(wanted, Tensor)
    assert float((written.exp() * (written - wanted)).sum()) < 0.01
    # And it earns what that policy earns: far more than the data, whose mean is 0.
    earned = float((written.exp().double() * everything.scores).sum())
    assert earned == pytest.approx(float((wanted.exp() * everything.scores).sum()), abs=0.05)  # of a range of 3.9
    assert earned > 0.8
    assert GUIDED in state.trunk.roles


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_what_is_kept_is_distributed_as_enumeration_says(beta: float, tmp_path: Path) -> None:
    # 64 texts; 4 draws for each of 6,000 kept. Total variation of 6,000 draws from 64 cells is about
    # sqrt(64 / (2 pi 6000)) = 0.04 at most; a wrong rule is off by 0.2 and more.
    world, n, count = World(num_tokens=4, length=3), 4, 6000
    trunk = Trunk(load_model(world.save_model(tmp_path, seed=1), compute=COMPUTE, chat=CHAT))
    logprobs = world.logprobs(trunk.model)
    exact = Optimum.of(world, logprobs, 0.5)
    config = BestOfConfig(
        best_of=n,
        beta=beta,
        completions_per_prompt=count,
        batch_size=count * n,
        sampling=SamplingConfig(max_new_tokens=world.length),
        chat=CHAT,
        compute=COMPUTE,
    )
    found = best_of_n(trunk, [world.prompt], world.reward, config)
    if beta == 0:
        wanted = best_of_n_logprobs(logprobs, exact.values, n).exp()
        assert float((wanted * (wanted.log() - logprobs)).sum()) < best_of_n_kl(n)
    else:
        wanted = _kept_by_lot(logprobs.exp(), exact.values, n, beta)
    index = {sequence: place for place, sequence in enumerate(world.sequences())}
    counts = torch.zeros(len(index), dtype=torch.float64)
    for item in found.completions:
        counts[index[tuple(item.token_ids or ())]] += 1
    assert float((counts / count - wanted).abs().sum() / 2) < 0.06
    # The mean score beside it estimates the exact one without bias; 5 standard errors of 24,000 draws.
    mean = float((best_of_n_logprobs(logprobs, exact.values, n).exp() * exact.values).sum())
    assert abs(found.expected[n] - mean) < 5 * float(exact.values.std()) / math.sqrt(count)


def _kept_by_lot(probs: Tensor, values: Tensor, n: int, beta: float) -> Tensor:
    """Return the probability that each text is kept, by drawing 500,000 groups in another way: multinomial twice."""
    generator = torch.Generator().manual_seed(5)
    draws = torch.multinomial(probs, 500_000 * n, replacement=True, generator=generator).reshape(-1, n)
    weights = (values[draws] / beta).exp()
    kept = draws.gather(1, torch.multinomial(weights, 1, generator=generator)).squeeze(1)
    return torch.bincount(kept, minlength=len(probs)).double() / len(kept)


def test_choosing_by_lot_comes_near_to_the_optimum_with_many_draws(tmp_path: Path) -> None:
    # pi* = pi exp(value / beta) / Z: 16 draws bring it 4 times nearer than 4.
    world = World(num_tokens=4, length=3)
    trunk = Trunk(load_model(world.save_model(tmp_path, seed=1), compute=COMPUTE, chat=CHAT))
    exact = Optimum.of(world, world.logprobs(trunk.model), 0.5)
    few, many = (
        _kept_by_lot(exact.reference.exp(), exact.values, n, 0.5)[:, None].log().squeeze(1).nan_to_num(neginf=-30.0)
        for n in (4, 16)
    )
    far, near = (float((logprobs.exp() * (logprobs - exact.logprobs)).sum()) for logprobs in (few, many))
    assert near < far / 4
    assert near < 0.02

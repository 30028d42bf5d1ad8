"""An enumerable world: V tokens, L positions, no stop token; the best policy is known exactly."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from harken.records import Completion, Message, Prompt

LETTERS = "abcdef"
START = 0
"""The prompt's one token."""


@dataclass(frozen=True)
class World:
    """How many tokens there are and how many make a completion."""

    num_tokens: int
    length: int

    @property
    def prompt(self) -> Prompt:
        return Prompt(id="start", messages=(Message(role="user", content=LETTERS[START]),))

    def sequences(self) -> list[tuple[int, ...]]:
        return list(itertools.product(range(self.num_tokens), repeat=self.length))

    def value(self, sequence: Sequence[int]) -> float:
        """0.7 for each token 0 and 0.5 for each ascent, less the mean of that over all sequences.

        Of L uniform tokens L/V are token 0, and each of L - 1 neighbors ascends with chance (V - 1) / 2V.
        """
        zeros = sum(token == 0 for token in sequence)
        ascents = sum(first < second for first, second in itertools.pairwise(sequence))
        size = self.num_tokens
        return 0.7 * (zeros - self.length / size) + 0.5 * (ascents - (self.length - 1) * (size - 1) / (2 * size))

    def reward(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [self.value([LETTERS.index(letter) for letter in item.message.content]) for item in completions]

    def save_model(self, folder: Path, seed: int) -> Path:
        """Save a random GPT-2 (2 layers, width 64) whose outputs are the tokens only: it cannot stop."""
        tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(LETTERS)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([AddedToken("<end>", normalized=False)])  # id 6, outside the model's outputs
        config = GPT2Config(
            vocab_size=self.num_tokens,
            n_positions=8,
            n_embd=64,
            n_layer=2,
            n_head=2,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            GPT2LMHeadModel(config).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
        return folder

    @torch.no_grad()
    def logprobs(self, model: PreTrainedModel) -> Tensor:
        """Return fp64 log-probabilities of all sequences, by the model's own forward pass."""
        ids = torch.tensor([(START, *sequence) for sequence in self.sequences()])
        network: Any = model
        table = network(ids).logits.double().log_softmax(-1)[:, :-1]
        return table.gather(2, ids[:, 1:, None]).squeeze(2).sum(1)


@dataclass(frozen=True)
class Optimum:
    """The policy that maximizes E[value] - beta KL(policy || reference), by enumeration in fp64."""

    values: Tensor
    reference: Tensor
    beta: float

    @classmethod
    def of(cls, world: World, reference: Tensor, beta: float) -> "Optimum":
        values = [world.value(sequence) for sequence in world.sequences()]
        return cls(torch.tensor(values, dtype=torch.float64), reference, beta)

    @property
    def logprobs(self) -> Tensor:
        tilted = self.reference + self.values / self.beta
        return tilted - tilted.logsumexp(0)

    def objective(self, logprobs: Tensor) -> float:
        return float((logprobs.exp() * (self.values - self.beta * (logprobs - self.reference))).sum())

    @property
    def best(self) -> float:
        """Beta times the logarithm of the mean of exp(value / beta) under the reference."""
        return self.beta * float((self.reference + self.values / self.beta).logsumexp(0))

    def frontier(self, kl: float) -> float:
        """Return the greatest E[value] of any policy whose KL to the reference is `kl`: that of some other beta."""
        low, high = math.log(1e-3), math.log(1e3)
        for _ in range(100):
            middle = (low + high) / 2
            tilted = Optimum(self.values, self.reference, math.exp(middle)).logprobs
            drift = float((tilted.exp() * (tilted - self.reference)).sum())
            low, high = (middle, high) if drift > kl else (low, middle)
        return float((Optimum(self.values, self.reference, math.exp(high)).logprobs.exp() * self.values).sum())

    def divergence(self, logprobs: Tensor) -> float:
        """KL(policy || optimum) in nats."""
        assert math.isclose(float(logprobs.exp().sum()), 1.0, rel_tol=1e-5), "all sequences are enumerated"
        return float((logprobs.exp() * (logprobs - self.logprobs)).sum())


def kl_loss_fixed_point(world: World, optimum: Optimum, scale: float, estimator: str) -> Tensor:
    """Return fp64 log-probabilities of all sequences where a KL loss and the advantages balance at every token.

    The loss of a token moves that token's distribution only: unlike the KL in the reward it does not count for the
    tokens before. So at each prefix s, with Q(s, a) the expected value under the policy itself (not the soft value),
    the policy maximizes sum_a pi(a|s) Q(s, a) - scale KL, which is

    - for k2 and full, KL(pi || ref): pi = ref exp(Q / scale) / Z;
    - for k3, whose gradient is that of KL(ref || pi): pi = scale ref / (c - Q), c such that it sums to 1.

    Args:
        world: the enumerable one.
        optimum: holds values and reference.
        scale: beta, times the spread of the values where advantages are divided by it.
        estimator: `k2`, `k3` or `full`.
    """
    shape = (world.num_tokens,) * world.length
    reference, value = optimum.reference.exp().reshape(shape), optimum.values.reshape(shape)
    logprobs = torch.zeros(shape, dtype=torch.float64)
    for level in range(world.length, 0, -1):
        conditional = reference / reference.sum(-1, keepdim=True)
        if estimator == "k3":
            policy = _balanced(conditional, value, scale)
        else:
            policy = (conditional.log() + value / scale).softmax(-1)
        later = world.length - level
        logprobs = logprobs + policy.log().reshape(*policy.shape, *(1,) * later)
        value, reference = (policy * value).sum(-1), reference.sum(-1)
    return logprobs.flatten()


def _balanced(reference: Tensor, value: Tensor, scale: float) -> Tensor:
    """Solve sum_a scale ref(a) / (c - Q(a)) = 1 for c by bisection: c is above every Q and at most scale above all."""
    top = value.amax(-1, keepdim=True)
    low, high = top + scale * reference.amin(-1, keepdim=True) * 1e-6, top + scale
    for _ in range(200):
        middle = (low + high) / 2
        too_much = (scale * reference / (middle - value)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    policy = scale * reference / (high - value)
    return policy / policy.sum(-1, keepdim=True)


def group_fixed_point(world: World, optimum: Optimum, estimator: str) -> Tensor:
    """Return the fixed point of GRPO: advantages in units of the values' spread under the policy, which it shrinks.

    Dividing the advantages by a number is multiplying beta by it, so the point solves scale = beta std(scale).
    """
    low, high = 1e-3, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        policy = kl_loss_fixed_point(world, optimum, middle, estimator).exp()
        mean = (policy * optimum.values).sum()
        spread = float((policy * (optimum.values - mean).square()).sum().sqrt())
        low, high = (middle, high) if optimum.beta * spread > middle else (low, middle)
    return kl_loss_fixed_point(world, optimum, (low + high) / 2, estimator)

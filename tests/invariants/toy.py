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

    def divergence(self, logprobs: Tensor) -> float:
        """KL(policy || optimum) in nats."""
        assert math.isclose(float(logprobs.exp().sum()), 1.0, rel_tol=1e-5), "all sequences are enumerated"
        return float((logprobs.exp() * (logprobs - self.logprobs)).sum())

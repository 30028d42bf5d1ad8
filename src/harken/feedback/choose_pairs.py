"""Which pairs of completions people are asked about, each with the probability that it was chosen.

A pair whose order the reward models are unsure of teaches more than one that they know. Reports about all pairs stay
right all the same, because every pair has a chance and its chance is kept: weighed by its inverse, a mean over the
chosen pairs estimates the mean over all (Horvitz and Thompson 1952, doi:10.1080/01621459.1952.10483446).
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harken.records import Completion, Prompt

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_WORD = re.compile(r"\w+")
_DIMENSIONS = 512
"""Buckets that words are hashed into, to tell prompts apart."""


@dataclass(frozen=True)
class Candidate:
    """Two completions of one prompt that people could compare."""

    prompt: int
    """Index of the prompt."""
    one: int
    other: int
    """Indices of the completions."""


@dataclass(frozen=True)
class Chosen:
    """A pair to ask people about."""

    candidate: int
    probability: float
    """That this pair was chosen, by the whole procedure."""
    is_random: bool
    """Whether it belongs to the share that was drawn at random: these alone are an even sample of all pairs."""


def candidate_pairs(
    prompts: Sequence[Prompt], completions: Sequence[Completion], across: Literal["any", "models"]
) -> list[Candidate]:
    """Return all pairs of completions of one prompt with different texts, prompt by prompt.

    Args:
        prompts: in any order.
        completions: of these prompts; the same text twice is taken once.
        across: "models" leaves out two completions by the same model.
    """
    number = {prompt.id: index for index, prompt in enumerate(prompts)}
    members: list[list[int]] = [[] for _ in prompts]
    seen: set[tuple[str, str]] = set()
    for index, completion in enumerate(completions):
        key = (completion.prompt_id, completion.message.content)
        if key not in seen:
            seen.add(key)
            members[number[completion.prompt_id]].append(index)
    return [
        Candidate(prompt, one, other)
        for prompt, indices in enumerate(members)
        for one, other in combinations(indices, 2)
        if across == "any" or completions[one].model != completions[other].model
    ]


def uncertainty(logits: Floats) -> Floats:
    """Return how much a judgment of each pair would tell, in nats.

    Args:
        logits: (R, N) of R reward models, that the one completion of pair n is preferred to the other.

    Returns: (N,) for two or more models, their disagreement: the entropy of the mean probability less the mean of the
        entropies (BALD, arXiv:1112.5745); what each of them is itself unsure of does not count. For a single model the
        entropy, which is largest at 1/2; for none, ones.
    """
    if len(logits) == 0:
        return np.ones_like(logits.sum(0))
    p = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    if len(logits) == 1:
        return _entropy(p[0])
    return np.maximum(0.0, _entropy(p.mean(0)) - _entropy(p).mean(0))


def _entropy(p: Floats) -> Floats:
    safe = np.clip(p, 1e-300, 1)
    rest = np.clip(1 - p, 1e-300, 1)
    return -(p * np.log(safe) + (1 - p) * np.log(rest))


def prompt_clusters(prompts: Sequence[Prompt], count: int) -> Ints:
    """Return a cluster for each prompt, by the words of its messages; 0 for all where `count` is 0.

    Centers are the prompts that are farthest from all centers before; every prompt belongs to the nearest (Gonzalez
    1985, doi:10.1016/0304-3975(85)90224-5).
    """
    if count == 0 or not prompts:
        return np.zeros(len(prompts), dtype=np.int64)
    vectors = np.zeros((len(prompts), _DIMENSIONS))
    for row, prompt in enumerate(prompts):
        for word in _WORD.findall(" ".join(message.content for message in prompt.messages).lower()):
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            vectors[row, int.from_bytes(digest, "big") % _DIMENSIONS] += 1
    # A word that many prompts hold says little about which of them are alike.
    vectors = np.log1p(vectors) * np.log((1 + len(prompts)) / (1 + (vectors > 0).sum(0)))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms > 0, norms, 1)
    nearest = vectors @ vectors[0]
    cluster = np.zeros(len(prompts), dtype=np.int64)
    for number in range(1, min(count, len(prompts))):
        center = int(nearest.argmin())
        if nearest[center] >= 1 - 1e-9:
            break  # all others are the same as a center
        similarity = vectors @ vectors[center]
        cluster[similarity > nearest] = number
        nearest = np.maximum(nearest, similarity)
    return cluster


def inclusion_probabilities(scores: Floats, cluster: Ints, num_chosen: int, random_share: float) -> Floats:
    """Return for each of N pairs the probability of being chosen; they sum to min(num_chosen, N).

    Each pair has the same chance by the random share. The rest is shared out evenly over the clusters and, within one,
    in proportion to the scores; what would be more than 1 goes to the others.

    Args:
        scores: (N,) not negative.
        cluster: (N,) of the pair's prompt.
        num_chosen: pairs to choose.
        random_share: in (0, 1].
    """
    num = len(scores)
    if num_chosen >= num:
        return np.ones(num)
    sums = np.bincount(cluster, weights=scores)[cluster]
    weight = np.where(sums > 0, scores / np.where(sums > 0, sums, 1), 0.0)
    if weight.sum() == 0:
        weight = np.ones(num)
    base = random_share * num_chosen / num
    low, high = 0.0, 1.0
    while np.minimum(1.0, base + high * weight).sum() < num_chosen and high < 2.0**200:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1.0, base + middle * weight).sum() < num_chosen else (low, middle)
    found = np.minimum(1.0, base + high * weight)
    # Where all that have a score are certain, the rest is shared by those that have none.
    if (missing := num_chosen - found.sum()) > 1e-9:
        room = 1 - found
        found = found + missing * room / room.sum()
    return found


def choose_pairs(scores: Floats, cluster: Ints, *, num_chosen: int, random_share: float, seed: int) -> list[Chosen]:
    """Choose pairs by systematic sampling, which keeps `inclusion_probabilities` exactly.

    The pairs are taken in their order, cluster by cluster, so that neighbors, such as pairs of one prompt, are rarely
    chosen together.

    Returns: `min(num_chosen, N)` pairs (one more or less only by rounding), in their order.

    Source: Madow 1949, doi:10.1214/aoms/1177729988.
    """
    num = len(scores)
    if num == 0:
        return []
    probability = inclusion_probabilities(scores, cluster, num_chosen, random_share)
    order = np.argsort(cluster, kind="stable")
    generator = np.random.default_rng(seed)
    ends = np.cumsum(probability[order])
    # Rounding may leave the sum a hair beside a whole number.
    ends[-1] = round(float(ends[-1]))
    hits = np.searchsorted(ends, generator.uniform() + np.arange(int(ends[-1])), side="right")
    base = random_share * min(num_chosen, num) / num
    chosen = np.unique(order[np.minimum(hits, num - 1)])
    # Of a pair chosen with probability p, the random share has claimed it with base / p.
    lots = generator.uniform(size=num)
    return [
        Chosen(int(index), float(probability[index]), bool(lots[index] * probability[index] < base)) for index in chosen
    ]

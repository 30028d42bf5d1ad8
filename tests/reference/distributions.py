"""Softmax, its sampling variants and Bradley-Terry on plain lists, written from the equations."""

import math


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    """exp(z / T) / sum exp(z / T)."""
    scaled = [z / temperature for z in logits]
    weights = [math.exp(z - max(scaled)) for z in scaled]
    return [w / math.fsum(weights) for w in weights]


def entropy(probs: list[float]) -> float:
    """-sum p log p."""
    return -math.fsum(p * math.log(p) for p in probs if p > 0)


def kl(p: list[float], q: list[float]) -> float:
    """Sum of p log(p / q)."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def sampling_probs(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Top-k, renormalize, smallest prefix that reaches top_p, renormalize."""
    probs = softmax(logits, temperature)
    order = sorted(range(len(probs)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    total = math.fsum(probs[i] for i in order)
    if top_p < 1:
        kept: list[int] = []
        while math.fsum(probs[i] for i in kept) / total < top_p:
            kept.append(order[len(kept)])
        order = kept
    total = math.fsum(probs[i] for i in order)
    return [probs[i] / total if i in order else 0.0 for i in range(len(probs))]


def token_logprobs(
    hidden: list[list[list[float]]],
    weight: list[list[float]],
    ids: list[list[int]],
    mask: list[list[bool]],
    temperature: float,
) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probability and entropy of each masked token from the state one position earlier."""
    logprobs = [[0.0] * len(row) for row in ids]
    entropies = [[0.0] * len(row) for row in ids]
    for b, row in enumerate(ids):
        for s, token in enumerate(row):
            if not mask[b][s]:
                continue
            state = hidden[b][s - 1]
            logits = [math.fsum(w * h for w, h in zip(out, state, strict=True)) for out in weight]
            probs = softmax(logits, temperature)
            logprobs[b][s] = math.log(probs[token])
            entropies[b][s] = entropy(probs)
    return logprobs, entropies


def bradley_terry(pairs: list[tuple[float, float, float, float, float]], centering: float) -> dict[str, float]:
    """Weighted means over pairs of (chosen, rejected, label, margin, weight)."""
    loss = accuracy = difference = total = 0.0
    for chosen, rejected, label, margin, weight in pairs:
        wins = math.exp(chosen) / (math.exp(chosen) + math.exp(rejected + margin))
        cross_entropy = -label * math.log(wins) - (1 - label) * math.log(1 - wins)
        loss += weight * (cross_entropy + centering * (chosen + rejected) ** 2)
        accuracy += weight * (1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0)
        difference += weight * (chosen - rejected)
        total += weight
    return {
        "loss": loss / total,
        "accuracy": accuracy / total,
        "score_margin": difference / total,
    }

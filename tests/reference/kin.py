"""The formulas of PPO's kin on nested lists, one loop per equation, written from the papers."""

import math
import statistics

from tests.reference.ppo import Flags, Rows, clip


def rloo(rewards: list[float], size: int) -> list[float]:
    """arXiv:2402.14740 eq. 7: each reward less the mean of the others of its group."""
    found: list[float] = []
    for start in range(0, len(rewards), size):
        group = rewards[start : start + size]
        for index, reward in enumerate(group):
            others = group[:index] + group[index + 1 :]
            found.append(reward - math.fsum(others) / len(others))
    return found


def group(rewards: list[float], size: int, divide_by_std: bool) -> list[float]:
    """arXiv:2402.03300 section 4.1.2, with the sample standard deviation; arXiv:2503.20783 without it."""
    found: list[float] = []
    for start in range(0, len(rewards), size):
        members = rewards[start : start + size]
        scale = statistics.stdev(members) + 1e-6 if divide_by_std else 1.0
        found += [(reward - statistics.fmean(members)) / scale for reward in members]
    return found


def tokens_of(mask: Flags) -> list[list[int]]:
    """Columns of each row's completion tokens."""
    return [[s for s, counts in enumerate(row) if counts] for row in mask]


def reinforce(policy: Rows, advantages: Rows, mask: Flags) -> float:
    """Williams 1992: minus the mean over tokens of advantage times log-probability."""
    terms = [advantages[b][s] * policy[b][s] for b, places in enumerate(tokens_of(mask)) for s in places]
    return -math.fsum(terms) / len(terms)


def gspo(policy: Rows, old: Rows, advantages: Rows, mask: Flags, bounds: tuple[float, float]) -> dict[str, float]:
    """arXiv:2507.18071 eq. 5 and 7, as a mean over tokens."""
    loss = ratios = clipped_tokens = count = 0.0
    for b, places in enumerate(tokens_of(mask)):
        likelihood = math.prod(math.exp(policy[b][s]) for s in places)
        ratio = (likelihood / math.prod(math.exp(old[b][s]) for s in places)) ** (1 / len(places))
        for s in places:
            plain = ratio * advantages[b][s]
            clipped = clip(ratio, 1 - bounds[0], 1 + bounds[1]) * advantages[b][s]
            loss -= min(plain, clipped)
            clipped_tokens += clipped < plain
            ratios += ratio
            count += 1
    return {"loss": loss / count, "clip_fraction": clipped_tokens / count, "ratio": ratios / count}


def cispo(policy: Rows, old: Rows, advantages: Rows, mask: Flags, bounds: tuple[float, float]) -> dict[str, float]:
    """arXiv:2506.13585 eq. 4-5: the clipped ratio is a constant weight."""
    loss = ratios = clipped_tokens = count = 0.0
    for b, places in enumerate(tokens_of(mask)):
        for s in places:
            ratio = math.exp(policy[b][s]) / math.exp(old[b][s])
            weight = clip(ratio, 1 - bounds[0], 1 + bounds[1])
            loss -= weight * advantages[b][s] * policy[b][s]
            clipped_tokens += weight != ratio
            ratios += ratio
            count += 1
    return {"loss": loss / count, "clip_fraction": clipped_tokens / count, "ratio": ratios / count}


def aggregated(x: Rows, mask: Flags, aggregation: str, length: int) -> float:
    """The three means of arXiv:2402.03300 eq. 3, arXiv:2503.14476 section 3.3 and arXiv:2503.20783."""
    rows = [[x[b][s] for s in places] for b, places in enumerate(tokens_of(mask))]
    if aggregation == "token_mean":
        return math.fsum(value for row in rows for value in row) / sum(map(len, rows))
    means = [math.fsum(row) / (len(row) if aggregation == "sequence_mean" else length) for row in rows]
    return math.fsum(means) / len(means)


def huber_value_loss(values: Rows, old: Rows, returns: Rows, mask: Flags, clip_range: float, delta: float) -> float:
    """Mean over tokens of the larger Huber loss of the value and of the clipped value."""

    def huber(error: float) -> float:
        size = abs(error)
        return size**2 / 2 if size <= delta else delta * (size - delta / 2)

    losses: list[float] = []
    for b, places in enumerate(tokens_of(mask)):
        for s in places:
            near = clip(values[b][s], old[b][s] - clip_range, old[b][s] + clip_range)
            losses.append(max(huber(values[b][s] - returns[b][s]), huber(near - returns[b][s])))
    return math.fsum(losses) / len(losses)


def decayed_moments(batches: list[list[float]], decay: float) -> tuple[float, float]:
    """Mean and deviation with weight decay^age for each batch, every entry of a batch alike."""
    ages = range(len(batches) - 1, -1, -1)
    pairs = [(value, decay**age / len(batch)) for batch, age in zip(batches, ages, strict=True) for value in batch]
    total = math.fsum(weight for _, weight in pairs)
    mean = math.fsum(value * weight for value, weight in pairs) / total
    return mean, math.sqrt(math.fsum(weight * (value - mean) ** 2 for value, weight in pairs) / total)

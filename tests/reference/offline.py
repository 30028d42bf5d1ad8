"""ILQL's loss and best-of-n, on plain lists, written from the definitions."""

import itertools
import math
from typing import Any


def ilql(heads: list[dict[str, Any]], rows: dict[str, Any], settings: dict[str, float]) -> dict[str, float]:
    """Sums over real tokens; heads hold q, logprob and target, rows hold value, reward, policy and mask."""
    found: dict[str, float] = dict.fromkeys(
        ("q_loss", "value_loss", "cql_loss", "awac_loss", "q_mean", "value_mean", "advantage_mean"), 0.0
    )
    for b, mask in enumerate(rows["mask"]):
        places = [s for s, real in enumerate(mask) if real]
        for index, s in enumerate(places):
            after = rows["value"][b][places[index + 1]] if index + 1 < len(places) else 0.0
            goal = rows["reward"][b][s] + settings["gamma"] * after
            least = min(head["target"][b][s] for head in heads)
            error = least - rows["value"][b][s]
            for head in heads:
                found["q_loss"] += (head["q"][b][s] - goal) ** 2
                found["cql_loss"] -= head["logprob"][b][s]
            found["value_loss"] += (settings["expectile"] if error >= 0 else 1 - settings["expectile"]) * error**2
            found["awac_loss"] -= math.exp(settings["awac_beta"] * error) * rows["policy"][b][s]
            found["q_mean"] += least
            found["value_mean"] += rows["value"][b][s]
            found["advantage_mean"] += error
    found["loss"] = (
        found["q_loss"]
        + found["value_loss"]
        + settings["cql_coef"] * found["cql_loss"]
        + settings["awac_coef"] * found["awac_loss"]
    )
    return found


def best_of_n(probs: list[float], scores: list[float], n: int) -> list[float]:
    """Probability that each completion is kept, over all sequences of n draws; the first of the best is kept."""
    found = [0.0] * len(probs)
    for draws in itertools.product(range(len(probs)), repeat=n):
        kept = max(draws, key=lambda one: scores[one])
        found[kept] += math.prod(probs[one] for one in draws)
    return found


def expected_best(scores: list[float], n: int) -> float:
    """Mean of the best over all subsets of n."""
    subsets = list(itertools.combinations(scores, n))
    return sum(max(subset) for subset in subsets) / len(subsets)

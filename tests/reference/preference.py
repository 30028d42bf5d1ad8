"""Losses on preference pairs, on plain lists, written from the equations."""

import math


def dpo(pairs: list[tuple[float, ...]], beta: float) -> dict[str, float]:
    """Weighted means over pairs of (chosen, rejected, reference chosen, reference rejected, label, weight).

    The probability that chosen wins is r_c^b / (r_c^b + r_r^b) with r = pi / pi_ref: Bradley-Terry on the
    rewards beta log r (arXiv:2305.18290, eq. 6).
    """
    found = dict.fromkeys(("loss", "accuracy", "reward_margin", "chosen_reward", "rejected_reward"), 0.0)
    total = 0.0
    for chosen, rejected, ref_chosen, ref_rejected, label, weight in pairs:
        one = (math.exp(chosen) / math.exp(ref_chosen)) ** beta
        other = (math.exp(rejected) / math.exp(ref_rejected)) ** beta
        wins, loses = one / (one + other), other / (one + other)
        found["loss"] -= weight * (label * math.log(wins) + (1 - label) * math.log(loses))
        found["accuracy"] += weight * (1.0 if one > other else 0.5 if one == other else 0.0)
        found["reward_margin"] += weight * math.log(one / other)
        found["chosen_reward"] += weight * math.log(one)
        found["rejected_reward"] += weight * math.log(other)
        total += weight
    return {name: value / total for name, value in found.items()}

"""Losses on preferences, on plain lists, written from the equations."""

import math
from collections.abc import Callable

Side = tuple[float, float, float]
"""Log-probability under policy and reference, tokens."""
Pair = tuple[float, ...]
"""Chosen, rejected, reference chosen, reference rejected, tokens of each, label, weight."""


def _weighted(
    pairs: list[Pair], reward: Callable[[Side], float], cost: Callable[[Side, Side], float]
) -> dict[str, float]:
    """Weighted means: a pair costs what its label expects of the two orders it may have."""
    names = (
        "loss",
        "accuracy",
        "reward_margin",
        "chosen_reward",
        "rejected_reward",
        "chosen_logprob",
        "rejected_logprob",
    )
    found = dict.fromkeys(names, 0.0)
    for chosen, rejected, ref_chosen, ref_rejected, tokens, other_tokens, label, weight in pairs:
        one, other = (chosen, ref_chosen, tokens), (rejected, ref_rejected, other_tokens)
        found["loss"] += weight * (label * cost(one, other) + (1 - label) * cost(other, one))
        lead = reward(one) - reward(other)
        found["accuracy"] += weight * (1.0 if lead > 0 else 0.5 if lead == 0 else 0.0)
        found["reward_margin"] += weight * lead
        found["chosen_reward"] += weight * reward(one)
        found["rejected_reward"] += weight * reward(other)
        found["chosen_logprob"] += weight * chosen
        found["rejected_logprob"] += weight * rejected
    total = sum(pair[-1] for pair in pairs)
    return {name: value / total for name, value in found.items()}


def _nll(side: Side) -> float:
    return -side[0] / side[2]


def dpo(
    pairs: list[Pair],
    beta: float,
    *,
    per_token: bool = False,
    nll: float = 0.0,
    conservative: float = 0.0,
    robust: float = 0.0,
    with_reference: bool = True,
) -> dict[str, float]:
    """DPO: the probability that one wins is q1 / (q1 + q2) with q = (pi / pi_ref)^beta (arXiv:2305.18290, eq. 6).

    Conservative: (1 - e) L + e L of the swapped pair. Robust: ((1 - e) L - e L of the swapped pair) / (1 - 2 e).
    """

    def strength(side: Side) -> float:
        ratio = math.exp(side[0]) / (math.exp(side[1]) if with_reference else 1.0)
        return ratio ** (beta / side[2] if per_token else beta)

    def plain(one: Side, other: Side) -> float:
        return -math.log(strength(one) / (strength(one) + strength(other)))

    def cost(one: Side, other: Side) -> float:
        kept, swapped = plain(one, other), plain(other, one)
        if robust:
            return ((1 - robust) * kept - robust * swapped) / (1 - 2 * robust)
        return (1 - conservative) * kept + conservative * swapped + nll * _nll(one)

    return _weighted(pairs, lambda side: math.log(strength(side)), cost)


def ipo(pairs: list[Pair], tau: float, *, per_token: bool) -> dict[str, float]:
    """IPO: (h - 1 / (2 tau))^2 with h the difference of log-ratios (arXiv:2310.12036, eq. 17)."""

    def ratio(side: Side) -> float:
        return (side[0] - side[1]) / (side[2] if per_token else 1.0)

    return _weighted(
        pairs, lambda side: tau * ratio(side), lambda one, other: (ratio(one) - ratio(other) - 1 / (2 * tau)) ** 2
    )


def hinge(pairs: list[Pair], beta: float, *, nll: float) -> dict[str, float]:
    """SLiC with a reference: max(0, 1 - beta h), and the likelihood of the winner."""

    def reward(side: Side) -> float:
        return beta * (side[0] - side[1])

    return _weighted(pairs, reward, lambda one, other: max(0.0, 1 - (reward(one) - reward(other))) + nll * _nll(one))


def simpo(pairs: list[Pair], beta: float, gamma: float) -> dict[str, float]:
    """SimPO: -log sigmoid(beta log pi(c) / |c| - beta log pi(r) / |r| - gamma) (arXiv:2405.14734, eq. 6)."""

    def reward(side: Side) -> float:
        return beta / side[2] * side[0]

    return _weighted(pairs, reward, lambda one, other: math.log(1 + math.exp(-(reward(one) - reward(other) - gamma))))


def orpo(pairs: list[Pair], odds_coef: float) -> dict[str, float]:
    """ORPO: -log p + lambda log(1 + odds(loser) / odds(winner)), p the geometric mean of a token's probability."""

    def odds(side: Side) -> float:
        p = math.exp(side[0]) ** (1 / side[2])
        return p / (1 - p)

    return _weighted(
        pairs,
        lambda side: odds_coef * math.log(odds(side)),
        lambda one, other: _nll(one) + odds_coef * math.log(1 + odds(other) / odds(one)),
    )


def kto(
    completions: list[tuple[float, ...]], beta: float, z: float, good_weight: float, bad_weight: float
) -> dict[str, float]:
    """KTO of (log-probability, reference, label, weight): lambda (1 - value), value a sigmoid about z (eq. 7 and 8)."""
    names = ("loss", "accuracy", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob")
    found: dict[str, float] = dict.fromkeys(names, 0.0)
    for own, ref, label, weight in completions:
        value = 1 / (1 + math.exp(-beta * (own - ref - z)))
        found["loss"] += weight * (label * good_weight * (1 - value) + (1 - label) * bad_weight * value)
        above = 1.0 if own - ref > z else 0.5 if own - ref == z else 0.0
        found["accuracy"] += weight * (label * above + (1 - label) * (1 - above))
        for side, share in (("chosen", label), ("rejected", 1 - label)):
            found[f"{side}_reward"] += weight * share * beta * (own - ref)
            found[f"{side}_logprob"] += weight * share * own
    total = sum(item[3] for item in completions)
    good = sum(item[2] * item[3] for item in completions)
    parts = {"loss": total, "accuracy": total, "chosen": good, "rejected": total - good}
    means = {name: value / parts[name.split("_")[0]] for name, value in found.items()}
    return {**means, "reward_margin": means["chosen_reward"] - means["rejected_reward"]}

"""How good a reward model is on pairs it has not seen: accuracy by strength, calibration, length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from harken.estimates import share
from harken.lm.batch import Tokens
from harken.records import PreferencePair
from harken.reward.model import RewardModel

Array = NDArray[np.float64]
NUM_BINS = 10
BUCKETS = (
    (3.0, np.inf, "3 or more"),
    (2.0, 3.0, "2 to 3"),
    (1.0, 2.0, "1 to 2"),
    (0.0, 1.0, "under 1"),
)
STRENGTHS = ((3, "significantly"), (2, "clearly"), (1, "slightly"), (0, "negligibly"))


def examine(
    reward: RewardModel, pairs: Sequence[PreferencePair], encoded: Sequence[tuple[Tokens, Tokens]]
) -> dict[str, Any]:
    """Score held-out pairs and return the evaluation that `evaluation.json` holds."""
    scores = reward.score_tokens([side for pair in encoded for side in pair]).double().numpy()
    chosen, rejected = scores[0::2], scores[1::2]
    lengths = np.array([len(side.completion) for pair in encoded for side in pair], dtype=float)
    return summarize(chosen - rejected, pairs) | {
        "length_correlation": correlation(scores, lengths),
        "longer_chosen_share": float(np.mean(lengths[0::2] > lengths[1::2])),
    }


def summarize(margins: Array, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Return accuracy and calibration of score margins (P,), chosen minus rejected, in raw score units.

    Accuracy counts a tie as half right; intervals are Wilson's at 95 %. Buckets are by difference of mean ratings
    where the pairs have one, else by strength. Calibration compares sigmoid(margin) with the pairs' soft labels, after
    presenting each pair in a fixed random order so that confidence and label are free to disagree.
    """
    right = np.where(margins > 0, 1.0, np.where(margins < 0, 0.0, 0.5))
    differences = np.array([np.nan if pair.difference is None else abs(pair.difference) for pair in pairs])
    strengths = np.array([pair.strength for pair in pairs])
    if np.isnan(differences).any():
        buckets = [(label, strengths == strength) for strength, label in STRENGTHS]
        one_or_more = strengths >= 1
    else:
        buckets = [(label, (differences >= low) & (differences < high)) for low, high, label in BUCKETS]
        one_or_more = differences >= 1
    return {
        "num_pairs": len(pairs),
        "accuracy": _share(right),
        "accuracy_difference_1_or_more": _share(right[one_or_more]),
        "buckets": [
            {"label": label, "n": int(inside.sum()), "accuracy": _share(right[inside])} for label, inside in buckets
        ],
        "calibration": calibration(margins, np.array([pair.soft_label for pair in pairs])),
    }


def _share(right: Array) -> dict[str, float | int | None]:
    return share(float(right.sum()), len(right))


def calibration(margins: Array, soft_labels: Array) -> dict[str, Any]:
    """Return expected calibration error, Brier score and log loss of sigmoid(margin) against soft labels.

    The temperature is the one that minimizes the log loss on half of the pairs; the loss after it is measured on the
    other half.
    """
    flipped = np.random.default_rng(0).random(len(margins)) < 0.5
    logits = np.where(flipped, -margins, margins)
    labels = np.where(flipped, 1 - soft_labels, soft_labels)
    confidence = np.maximum(expit(logits), expit(-logits))
    agreed = np.where(logits >= 0, labels, 1 - labels)
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    which = np.clip(np.digitize(confidence, edges[1:-1]), 0, NUM_BINS - 1)
    bins: list[dict[str, float | int]] = []
    for index in range(NUM_BINS):
        inside = which == index
        if inside.any():
            bins.append(
                {
                    "low": float(edges[index]),
                    "high": float(edges[index + 1]),
                    "n": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(agreed[inside].mean()),
                }
            )
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / len(margins)
    fit, test = slice(0, None, 2), slice(1, None, 2)
    fitted: Any = minimize_scalar(
        lambda log_temperature: log_loss(logits[fit] / np.exp(log_temperature), labels[fit]),
        bounds=(-4.0, 4.0),
        method="bounded",
    )
    temperature = float(np.exp(fitted.x))
    return {
        "ece": float(error),
        "brier": float(np.mean((expit(logits) - labels) ** 2)),
        "nll": log_loss(logits, labels),
        "temperature": temperature,
        "nll_after_temperature": log_loss(logits[test] / temperature, labels[test]) if len(margins) > 1 else None,
        "bins": bins,
    }


def log_loss(logits: Array, labels: Array) -> float:
    """Return the mean cross-entropy in nats of sigmoid(logits) against labels in [0, 1]."""
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def correlation(first: Array, second: Array) -> float | None:
    """Return Pearson's correlation, or None when a side does not vary."""
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])

"""What each stage's numbers say, in sentences: people, their agreement, reward model, training."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from harken.report.facts import Fact, Verdict, against_line, in_brackets
from harken.report.numbers import count, number, percent, plural, visible
from harken.report.run_folder import Agreement, Curve, PreferenceSummary, RewardEvaluation


def people(agreement: Agreement) -> Fact:
    """Say how many judgments people gave on how many texts."""
    low, high = agreement.scale
    return Fact(
        f"People gave {plural(agreement.num_judgments, 'rating')} of "
        f"{plural(agreement.num_items, 'text')}, "
        f"{number(agreement.ratings_per_item.mean, 1)} a text, "
        f"on a scale from {number(low)} to {number(high)}."
    )


def leaning(agreement: Agreement) -> Fact:
    """Say which way the ratings lean: the shares above and below the middle of the scale."""
    total = sum(agreement.histogram.values())
    if not total:
        return Fact("No rating has been given yet.", "unclear")
    middle = sum(agreement.scale) / 2
    above = sum(n for value, n in agreement.histogram.items() if value > middle) / total
    below = sum(n for value, n in agreement.histogram.items() if value < middle) / total
    lean = "about as often" if abs(above - below) < 0.05 else "more often"
    first, second = ("below", "above") if below > above else ("above", "below")
    return Fact(
        f"People rated texts {lean} {first} {number(middle)} {'as' if 'as' in lean else 'than'} "
        f"{second} it: {percent(above)} of the ratings are above, {percent(below)} below."
    )


def agreement_level(agreement: Agreement) -> Fact:
    """Say how far people agree, by Krippendorff's own thresholds (0.8 and 0.667).

    Source: Krippendorff 2004, Content Analysis, 2nd edition, chapter 11.
    """
    alpha = agreement.alpha_ordinal or agreement.alpha_interval
    if alpha is None:
        return Fact(
            "How far people agree cannot be told: no text has two ratings, or all ratings are equal.",
            "unclear",
        )
    kind, judged = _alpha_words(alpha.value)
    text = f"{kind}: Krippendorff's alpha is {number(alpha.value, 2)}{in_brackets(alpha, places=2)}"
    return Fact(f"{text}, where 1 is perfect agreement and 0 is chance.", judged)


def agreement_of_means(agreement: Agreement) -> Fact | None:
    """Say how steady the mean of all ratings of a text is: measured, else by Spearman-Brown.

    Source: Spearman 1910 and Brown 1910; interval alpha is close to the intraclass correlation of
        one rating, which the formula raises to that of a mean of k.
    """
    alpha, raters = agreement.alpha_interval, agreement.ratings_per_item.mean
    if agreement.split_half_correlation is not None:
        return Fact(
            f"Training uses the mean of about {count(raters)} ratings, which is steadier than one "
            f"person's: the means of two random halves of the raters correlate at "
            f"{number(agreement.split_half_correlation, 2)}."
        )
    if alpha is None or not 0 < alpha.value < 1 or raters < 2:
        return None
    steady = raters * alpha.value / (1 + (raters - 1) * alpha.value)
    return Fact(
        f"Training uses the mean of about {count(raters)} ratings, which is steadier than one "
        f"person's: its reliability is about {number(steady, 2)}."
    )


def pairs(summary: PreferenceSummary) -> Fact:
    """Say how many preference pairs the ratings gave and how many of them were close."""
    text = (
        f"The ratings became {plural(summary.train, 'preference pair')} to train on and "
        f"{count(summary.heldout)} held out"
    )
    strengths = summary.by_strength.get("train", {})
    total = sum(strengths.values())
    if not total:
        return Fact(f"{text}.")
    clear = sum(n for strength, n in strengths.items() if strength in ("2", "3")) / total
    return Fact(f"{text}; in {percent(clear)} of the former one text is clearly better.")


def reward_accuracy(evaluation: RewardEvaluation) -> Fact:
    """Say how often the reward model picks the text that people preferred, against a coin's 50%."""
    accuracy = evaluation.accuracy
    if accuracy is None:
        return Fact("The reward model was not tested: no pair was held out.", "unclear")
    pick = (
        f"picks the text that people preferred in {percent(accuracy.value)} of "
        f"{plural(evaluation.num_pairs, 'held-out pair')}{in_brackets(accuracy, as_percent=True)}"
    )
    match against_line(accuracy, 0.5):
        case "above":
            return Fact(f"The reward model {pick}; a coin would be right in 50%.", "good")
        case "below":
            return Fact(f"The reward model is worse than a coin: it {pick}.", "bad")
        case _:
            return Fact(f"The reward model is not clearly better than a coin: it {pick}.", "bad")


def reward_buckets(evaluation: RewardEvaluation) -> Fact | None:
    """Say how accuracy depends on how far apart people saw the two texts."""
    clear = evaluation.accuracy_difference_1_or_more
    if clear is None or evaluation.accuracy is None:
        return None
    rest = "so many of its misses are close calls"
    if clear.value <= evaluation.accuracy.value:
        return Fact(
            f"Where people's mean ratings differ by a point or more it does no better: "
            f"{percent(clear.value)}{in_brackets(clear, as_percent=True)}.",
            "bad",
        )
    return Fact(
        f"Where people's mean ratings differ by a point or more it is right in "
        f"{percent(clear.value)}{in_brackets(clear, as_percent=True)}, {rest}."
    )


def calibration(evaluation: RewardEvaluation) -> Fact | None:
    """Say whether the reward model's confidence can be taken at its word."""
    found = evaluation.calibration
    if found is None:
        return None
    off = f"{number(100 * found.ece, 1)} percentage points on average"
    if found.ece < 0.03:
        text = f"Its confidence can be taken at its word: it is off by {off}"
    elif found.temperature is not None and found.temperature > 1:
        text = f"It is too sure of itself: its confidence is off by {off}"
    elif found.temperature is not None and found.temperature < 1:
        text = f"It is more often right than it says: its confidence is off by {off}"
    else:
        text = f"Its confidence is off by {off}"
    if found.temperature is not None:
        text += f" (best temperature {number(found.temperature, 2)})"
    return Fact(f"{text}.", "good" if found.ece < 0.03 else "neutral")


def length_bias(evaluation: RewardEvaluation) -> Fact | None:
    """Say whether the reward model's scores go with length."""
    r = evaluation.length_correlation
    if r is None:
        return None
    strength = "hardly depend" if abs(r) < 0.1 else "depend a little" if abs(r) < 0.3 else "depend"
    return Fact(
        f"Its scores {strength} on length (correlation {number(r, 2)}).",
        "bad" if abs(r) >= 0.3 else "neutral",
    )


def fine_tuning(curve: Curve) -> Fact:
    """Say how far supervised fine-tuning lowered the loss, held-out where it was measured."""
    for key, name in (("heldout_loss", "held-out loss"), ("loss", "training loss")):
        values = [row[key] for row in curve if key in row]
        if len(values) >= 2:
            first, last = values[0], values[-1]
            verb = "fell" if last < first else "rose" if last > first else "stayed"
            return Fact(
                f"Supervised fine-tuning showed the model the kind of text that is wanted: the "
                f"{name} {verb} from {number(first)} to {number(last)} in "
                f"{plural(curve[-1]['step'], 'step')}.",
                "bad" if verb != "fell" else "neutral",
            )
    return Fact("Supervised fine-tuning has logged too few steps to say anything.")


@dataclasses.dataclass(frozen=True)
class Trend:
    """First and last level of a curve: means of k steps at either end."""

    first: float
    last: float
    k: int
    is_clear: bool
    """The levels differ by more than twice the standard error of their difference."""


def trend(curve: Curve, key: str) -> Trend | None:
    """Compare the first steps of a curve with the last (a tenth, 3 to 10); None if too short."""
    values = [row[key] for row in curve if key in row]
    k = min(10, max(3, len(values) // 10))
    if len(values) < 2 * k:
        return None
    ends = values[:k], values[-k:]
    first, last = (sum(end) / k for end in ends)
    squares = (sum((x - sum(end) / k) ** 2 for x in end) / (k - 1) for end in ends)
    error = math.sqrt(sum(squares) / k)
    return Trend(first, last, k, abs(last - first) > 2 * error)


def ppo(curve: Curve) -> Fact:
    """Say what happened to the score during PPO and what drift it cost."""
    score, steps = trend(curve, "score_mean"), plural(len(curve), "step")
    if score is None:
        return Fact(f"PPO has logged {steps}, too few to see a trend.", "unclear")
    levels = f"from {number(score.first, 2)} to {number(score.last, 2)}"
    over = f"over {steps} (means of the first and last {score.k})"
    kl = trend(curve, "kl_sequence")
    drift = f", and the policy drifted {number(kl.last, 1)} nats from its reference" if kl else ""
    if not score.is_clear:
        return Fact(f"The mean score did not clearly move: {levels} {over}{drift}.", "unclear")
    if score.last > score.first:
        return Fact(f"The mean score rose {levels} {over}{drift}.", "good")
    return Fact(f"The mean score fell {levels} {over}{drift}.", "bad")


def stopped(info: Mapping[str, Any]) -> list[Fact]:
    """Say that the guard ended PPO, from what the stage's manifest holds of it; nothing if it did not."""
    why = info.get("stopped")
    if not isinstance(why, str):
        return []
    step = info.get("best_step")
    given = f" What was given out is the policy of iteration {count(step)}." if isinstance(step, int) else ""
    return [Fact(f"Training was stopped because {visible(why)}.{given}", "bad")]


def ppo_warnings(curve: Curve) -> list[Fact]:
    """List what in the curves usually means trouble; empty if nothing does."""
    warnings: list[str] = []
    entropy, length = trend(curve, "entropy"), trend(curve, "length_mean")
    clipped, explained = trend(curve, "clip_fraction"), trend(curve, "explained_variance")
    if entropy and entropy.last < 0.5 * entropy.first:
        warnings.append(
            f"Entropy fell to {percent(entropy.last / entropy.first)} of where it started: "
            "the policy may be collapsing onto a few texts."
        )
    if length and length.first > 0 and not 1 / 1.3 < length.last / length.first < 1.3:
        warnings.append(
            f"The mean length went from {number(length.first, 1)} to {number(length.last, 1)} "
            "tokens: the reward may go with length."
        )
    if clipped and clipped.last > 0.3:
        warnings.append(
            f"{percent(clipped.last)} of the tokens are clipped in each update: the steps are too large for the data."
        )
    if explained and explained.last < 0:
        warnings.append(
            f"The critic's explained variance ends at {number(explained.last, 2)}: "
            "it predicts returns worse than a constant would."
        )
    return [Fact(text, "bad") for text in warnings]


def _alpha_words(alpha: float) -> tuple[str, Verdict]:
    if alpha >= 0.8:
        return "People agree well", "good"
    if alpha >= 0.667:
        return "People agree well enough for tentative conclusions", "neutral"
    if alpha >= 0.2:
        return "Two people agree only partly", "unclear"
    if alpha > 0:
        return "Two people hardly agree", "bad"
    return "People do not agree more than chance would", "bad"

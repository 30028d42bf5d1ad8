"""Numbers -> sentences. A sentence claims only what its interval shows, good or bad."""

import dataclasses
from typing import Literal

from harken.report.labels import EVALUATION, STAGES
from harken.report.numbers import decimals, duration, number, percent, plural, span
from harken.report.run_folder import (
    Evaluation,
    Interval,
    RunFolder,
)

Verdict = Literal["good", "bad", "unclear", "neutral"]


@dataclasses.dataclass(frozen=True)
class Fact:
    """One sentence or a few that belong together, and whether they are good news."""

    text: str
    verdict: Verdict = "neutral"


_SIDE_EFFECTS = ("distinct_1", "distinct_2", "distinct_3", "repetition", "perplexity_reference")
_VERDICTS = {
    ("above", "above"): Fact("The model learned what people preferred, and an independent judge agrees", "good"),
    ("above", "unclear"): Fact("The reward rose, but an independent judge sees no clear gain", "unclear"),
    ("above", "below"): Fact(
        "The reward rose while an independent judge fell: the model learned to please the reward model, not people",
        "bad",
    ),
    ("unclear", "above"): Fact(
        "An independent judge prefers the trained model, though its reward did not clearly rise",
        "unclear",
    ),
    ("unclear", "unclear"): Fact("Training brought no clear gain", "unclear"),
    ("unclear", "below"): Fact("An independent judge finds the trained model worse", "bad"),
    ("below", "above"): Fact("An independent judge prefers the trained model, though its reward fell", "unclear"),
    ("below", "unclear"): Fact("Training lowered the reward it was meant to raise", "bad"),
    ("below", "below"): Fact("Training made the model worse", "bad"),
}
"""(reward model, independent judge) -> what the run came to, each side by its interval."""


def against_line(interval: Interval | None, line: float) -> Literal["above", "below", "unclear"]:
    """Return on which side of a line an interval lies; "unclear" if it holds the line."""
    if interval is None or interval.low is None or interval.high is None:
        return "unclear"
    if interval.low > line:
        return "above"
    return "below" if interval.high < line else "unclear"


def reading(difference: Interval | None, better: Literal["higher", "lower"] | None) -> Fact:
    """Say what a difference (policy minus the model before) means: two or three words."""
    if difference is None or difference.low is None or difference.high is None:
        return Fact("no interval, so no verdict", "neutral")
    side = against_line(difference, 0.0)
    if side == "unclear":
        return Fact("no clear change", "unclear" if better else "neutral")
    change = "higher" if side == "above" else "lower"
    if better is None:
        return Fact(change, "neutral")
    if change == better:
        return Fact(f"better ({change})", "good")
    return Fact(f"worse ({change})", "bad")


def verdict(evaluation: Evaluation | None) -> Fact:
    """Say in one line what the run came to, by reward and independent judge."""
    if evaluation is None:
        return Fact("This run has not been evaluated yet")
    reward, lexicon = (evaluation.difference.get(metric) for metric in ("reward_score", "lexicon"))
    if all(one is None or one.low is None or one.high is None for one in (reward, lexicon)):
        return Fact("Too few prompts were compared to say whether training helped", "unclear")
    proxy, judge = against_line(reward, 0.0), against_line(lexicon, 0.0)
    if lexicon is None and proxy == "above":
        return Fact("The reward rose; no independent judge was asked", "unclear")
    return _VERDICTS[proxy, judge]


def comparison(evaluation: Evaluation, metric: str) -> Fact | None:
    """Say by how much the policy differs from the model before on one metric, with the interval."""
    before, after = evaluation.against.get(metric), evaluation.policy.get(metric)
    difference = evaluation.difference.get(metric)
    if before is None or after is None:
        return None
    label = EVALUATION[metric]
    subject = f"The {label.title[0].lower()}{label.title[1:]}"
    places = max(2, decimals([before.value, after.value]) - 1)
    levels = f"from {number(before.value, places)} to {number(after.value, places)}"
    if difference is None or difference.low is None:
        return Fact(f"{subject} went {levels}; without an interval that says little.")
    change = number(difference.value, places, signed=True)
    by = f"a difference of {change}{in_brackets(difference, places=places)}"
    match against_line(difference, 0.0):
        case "above":
            text = f"{subject} rose {levels}, {by}."
        case "below":
            text = f"{subject} fell {levels}, {by}."
        case _:
            text = f"{subject} shows no clear change: {levels}, {by}."
    return Fact(text, reading(difference, label.better).verdict)


def wins(evaluation: Evaluation, judge: str) -> Fact | None:
    """Say in what share of pairs a judge prefers the policy's completion, against 50%."""
    rate = evaluation.win_rate.get(judge)
    if rate is None:
        return None
    who = {"lexicon": "The independent judge", "reward": "The reward model"}.get(judge, judge)
    share = f"{percent(rate.value)} of pairs{in_brackets(rate, as_percent=True)}"
    match against_line(rate, 0.5):
        case "above":
            return Fact(f"{who} prefers the completion after training in {share}.", "good")
        case "below":
            return Fact(f"{who} prefers the completion after training in only {share}.", "bad")
        case _:
            return Fact(
                f"{who} has no clear preference: it picks the completion after training in {share}.",
                "unclear",
            )


def length_control(evaluation: Evaluation, judge: str) -> Fact | None:
    """Say what the win rate would be at equal lengths; by 10 points or more another, length explains much of it.

    Source: Dubois et al. 2024, arXiv:2404.04475.
    """
    plain, controlled = evaluation.win_rate.get(judge), evaluation.win_rate_length_controlled.get(judge)
    if plain is None or controlled is None:
        return None
    share = f"{percent(controlled.value)}{in_brackets(controlled, as_percent=True)}"
    text = f"If completions before and after were equally long, that share would be {share}"
    if abs(controlled.value - plain.value) < 0.1:
        return Fact(f"{text}.")
    return Fact(f"{text}: much of the preference goes with length.", "unclear")


def side_effects(evaluation: Evaluation) -> Fact | None:
    """Say what training cost: which of diversity, repetition and perplexity got clearly worse."""
    known = [m for m in _SIDE_EFFECTS if evaluation.difference.get(m) is not None]
    readings = {m: reading(evaluation.difference.get(m), EVALUATION[m].better) for m in known}
    worse = [m for m in known if readings[m].verdict == "bad"]
    judged = [m for m in known if readings[m].verdict != "neutral"]
    if worse:
        changes = [_change(evaluation, metric) for metric in worse]
        return Fact(f"What got worse: {', '.join(changes)}.", "bad")
    if not judged:
        return None
    names = ", ".join(EVALUATION[metric].title.lower() for metric in judged)
    return Fact(f"No side effect shows in what was checked ({names}).", "good")


def hints(evaluation: Evaluation) -> Fact | None:
    """Say how the side effects moved that were measured without an interval, claiming nothing.

    A loss of more than a quarter is marked as bad all the same: a collapse needs no interval.
    """
    moved: list[str] = []
    is_large = False
    for metric in _SIDE_EFFECTS:
        before, after = evaluation.against.get(metric), evaluation.policy.get(metric)
        difference = evaluation.difference.get(metric)
        if before is None or after is None or (difference and difference.low is not None):
            continue
        places = decimals([before.value, after.value])
        title = EVALUATION[metric].title.lower()
        moved.append(f"{title} {number(before.value, places)} to {number(after.value, places)}")
        worse = -1 if EVALUATION[metric].better == "higher" else 1
        is_large |= worse * (after.value - before.value) > 0.25 * abs(before.value)
    if not moved:
        return None
    text = f"Measured without an interval: {', '.join(moved)}"
    return Fact(f"{text}: a large loss.", "bad") if is_large else Fact(f"{text}.")


def cost(run: RunFolder) -> Fact | None:
    """Say how long the stages took together, on what, and which took longest."""
    if run.info is None or not run.info.seconds:
        return None
    seconds = run.info.seconds
    total = sum(seconds.values())
    stage = max(seconds, key=lambda name: seconds[name])
    cores = run.info.machine.get("cores")
    where = f" on {plural(cores, 'CPU core')}" if isinstance(cores, int) else ""
    text = f"The run took {duration(total)}{where}"
    if not total:
        return Fact(f"{text}.")
    share = percent(seconds[stage] / total)
    return Fact(f"{text}; {share} of it went into {STAGES.get(stage, stage)}.")


def _change(evaluation: Evaluation, metric: str) -> str:
    before, after = evaluation.against.get(metric), evaluation.policy.get(metric)
    title = EVALUATION[metric].title.lower()
    went = "up" if EVALUATION[metric].better == "lower" else "down"
    if before is None or after is None:
        return f"{title} {went}"
    places = decimals([before.value, after.value])
    return f"{title} {went} from {number(before.value, places)} to {number(after.value, places)}"


def in_brackets(interval: Interval, *, as_percent: bool = False, places: int | None = None) -> str:
    """Return the interval of a value as a parenthesis, or "" where it is not known."""
    words = span(interval.low, interval.high, as_percent=as_percent, places=places)
    return f" (95% interval {words})" if words else ""

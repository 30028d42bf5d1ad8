"""What the page says of comparisons and rankings: how far people agree, what sways them, how votes became pairs."""

from typing import Any

from harken.report import tables
from harken.report.facts import Fact, against_line
from harken.report.numbers import count, number, percent, plural
from harken.report.run_folder import Resolved, RunFolder, Votes

_METHODS = {
    "majority": "by the majority",
    "dawid_skene": "by Dawid and Skene's model of each judge's errors",
    "mace": "by MACE, which finds judges who do not look",
    "bradley_terry": "by Bradley and Terry's scores",
    "reliability": "by scores together with each judge's reliability and side habit",
    "ordered_logit": "by scores from how much better a completion was said to be",
    "plackett_luce": "by Plackett and Luce's scores of rankings",
}


def votes(run: RunFolder) -> dict[str, Any] | None:
    """Return what comparisons and rankings say; None where there are none."""
    if run.votes is None:
        return None
    found = run.votes
    rows = [
        ("Krippendorff's alpha, nominal", tables.with_interval(found.alpha_nominal)),
        ("Votes of two judges on a pair that agree", _share(found.raw_agreement)),
        ("Shown first wins, of decided votes", tables.with_interval(found.position.shown_first_wins)),
        ("The longer one wins, of decided votes", tables.with_interval(found.length.longer_wins)),
    ]
    if found.kendall_tau is not None:
        rows.append(("Kendall's tau between rankings", number(found.kendall_tau, 2)))
    details = [_side(found), _longer(found)]
    resolved = None if run.preferences is None else run.preferences.votes
    return {
        "fact": basis(found),
        "agreement": _agreement(found),
        "table": tables.Table("Comparisons and rankings", ("Measure", "Value"), tuple(rows)),
        "details": [fact for fact in details if fact is not None],
        "resolved": None if resolved is None else _resolved(resolved),
        "notes": [] if run.preferences is None else run.preferences.notes,
    }


def basis(found: Votes) -> Fact:
    """Say how many votes people gave on how many pairs."""
    ties = found.outcomes.get("tie", 0)
    return Fact(
        f"{plural(found.num_judges, 'judge')} gave {plural(found.num_votes, 'vote')} on "
        f"{plural(found.num_pairs, 'pair')} of completions; {percent(ties / max(found.num_votes, 1))} are ties."
    )


def _agreement(found: Votes) -> Fact:
    """Say how far they agree, against what published work finds of preferences."""
    if found.raw_agreement is None:
        return Fact("How far judges agree cannot be told: no pair was voted on by two.", "unclear")
    text = f"Two judges of one pair give the same answer in {percent(found.raw_agreement)} of the cases"
    return Fact(f"{text}; published work on preferences finds 63% to 77%.", "neutral")


def _side(found: Votes) -> Fact | None:
    share = found.position.shown_first_wins
    if share is None:
        return None
    side = against_line(share, 0.5)
    if side == "unclear":
        return Fact("The side on which a completion was shown makes no clear difference.", "good")
    more = "more" if side == "above" else "less"
    return Fact(f"The completion shown first wins {more} often than half: {percent(share.value)}.", "bad")


def _longer(found: Votes) -> Fact | None:
    share = found.length.longer_wins
    if share is None:
        return None
    side = against_line(share, 0.5)
    if side == "unclear":
        return Fact("Longer completions win no more and no less often than shorter ones.")
    word = "longer" if side == "above" else "shorter"
    won = share.value if side == "above" else 1 - share.value
    return Fact(f"The {word} completion wins in {percent(won)}; it may be the better one, or only {word}.", "unclear")


def _resolved(found: Resolved) -> Fact:
    """Say how votes became pairs, and what became of all pairs."""
    made = found.pairs.get("made", 0) + found.pairs.get("ties kept", 0)
    left_out = [f"{count(number)} {reason}" for reason, number in found.pairs.items() if reason != "made"]
    text = f"Votes became {plural(made, 'pair')} {_METHODS.get(found.resolve, found.resolve)}"
    text += f" ({', '.join(left_out)})" if left_out else ""
    if found.reversed_judges:
        text += f"; {plural(found.reversed_judges, 'judge')} clearly prefer the opposite of the others"
    if "median" in found.accuracy_of_judges:
        text += f"; the median judge is right in {percent(found.accuracy_of_judges['median'])}"
    return Fact(f"{text}.")


def _share(value: float | None) -> str:
    return "not measured" if value is None else percent(value)

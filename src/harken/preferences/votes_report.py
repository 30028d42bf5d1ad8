"""A report on comparisons and rankings: how far judges agree, who they are like, and what sways them."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from harken.errors import DataError
from harken.preferences.agreement import Estimate, Units, alpha_interval
from harken.preferences.bias import length_bias, position_bias, sides_are_fair
from harken.preferences.judges import Meetings, agreement_by_group, gold_of_task, gold_votes, judge_table, meetings
from harken.preferences.machines import agreement_with_people
from harken.preferences.numeric import Floats, kendall_tau
from harken.preferences.outcomes import rankings
from harken.preferences.probes import Probe, probe_report
from harken.preferences.reliability import MAX_RELIABILITY_VOTES, fit_reliability
from harken.preferences.selection import selection_report
from harken.preferences.subgroups import preference_shift
from harken.preferences.votes import Votes, read_votes
from harken.records import Completion, Judgment, RankingAnswer


def votes_report(
    judgments: Iterable[Judgment],
    completions: Iterable[Completion],
    *,
    gold: Iterable[Judgment] | None = None,
    groups: Mapping[str, str] | None = None,
    probes: Iterable[Probe] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Describe comparisons and rankings and how far they agree, as JSON-able values; None where there are none.

    Undefined statistics are None. Models and rules as judges are told apart, under `models`; only where nobody else has
    judged does all that is said speak of them.

    Args:
        judgments: of any kind; superseded ones do not count.
        completions: those that were compared, for their texts and models.
        gold: judgments known to be right, for each judge's share of right votes on the same pairs; None takes the gold
            answers of tasks, if there are any.
        groups: judge -> group, for agreement within and between groups.
        probes: pairs with a known right answer; see `harken.preferences.probes`.
        resamples: bootstrap samples of alpha's interval.
        seed: of bootstrap and permutations.

    Raises:
        DataError: a compared completion is missing, or gold or probes are not what they should be.
    """
    seen = _Seen()
    votes, machines = read_votes(seen.watch(judgments)), read_votes(seen.machines)
    models_judged = agreement_with_people(votes, machines)
    votes = votes if len(votes) else machines
    if len(votes) == 0:
        return None
    texts, models = _texts(votes, completions)
    met = meetings(votes)
    _, _, pair = votes.pairs()
    alpha = alpha_interval(Units(pair, votes.outcome.astype(np.float64)), "nominal", resamples=resamples, seed=seed)
    total = float(met.weight.sum())
    known = gold if gold is not None else list(seen.gold.values())
    return {
        "judgments": votes.counts,
        "num_votes": len(votes),
        "num_pairs": int(pair.max()) + 1,
        "num_judges": len(votes.judges),
        "votes_per_pair": len(votes) / (int(pair.max()) + 1),
        "outcomes": {name: int((votes.outcome * votes.side == sign).sum()) for name, sign in SIDES.items()},
        "alpha_nominal": _as_dict(alpha),
        "raw_agreement": 1 - float(met.differing.sum()) / total if total > 0 else None,
        "kendall_tau": _mean_tau(votes, seen.rankings),
        "position": position_bias(votes) | {"sides": sides_are_fair(votes, models)},
        "length": length_bias(votes, texts, models),
        "judges": _judges(votes, judge_table(votes, met, gold=gold_votes(known) if known else None), seen),
        "kinds": agreement_by_group(met, seen.kinds, votes.judges, min_judges=1, permutations=200, seed=seed),
        "models": models_judged or None,
        "selection": selection_report(votes, seen.chances, models, resamples=resamples, seed=seed),
        "groups": None if groups is None else _groups(votes, met, groups, seed),
        "probes": None if probes is None else probe_report(votes, probes),
    }


SIDES = {"shown first": 1, "tie": 0, "shown second": -1}
"""Outcome -> its sign by the order shown."""


def _groups(votes: Votes, met: Meetings, group_of: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Return agreement within and between groups, and how their preferences differ."""
    found = agreement_by_group(met, group_of, votes.judges, seed=seed)
    return found | {"shift": preference_shift(votes, group_of)}


class _Seen:
    """What of the judges' records does not become votes: kinds, times, rankings, models' own, chances, gold."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.rankings: dict[str, str] = {}
        self.machines: list[Judgment] = []
        self.chances: dict[str, float] = {}
        self.gold: dict[str, Judgment] = {}

    def watch(self, judgments: Iterable[Judgment]) -> Iterator[Judgment]:
        """Yield the judgments by people."""
        for judgment in judgments:
            if task := judgment.assignment:
                if task.selection_probability is not None:
                    self.chances[judgment.id] = task.selection_probability
                if task.task_id not in self.gold and (gold := gold_of_task(judgment)):
                    self.gold[task.task_id] = gold
            self.kinds[judgment.judge.id] = judgment.judge.kind
            if judgment.timing.active_s is not None:
                self.seconds[judgment.judge.id].append(judgment.timing.active_s)
            if isinstance(judgment.answer, RankingAnswer):
                self.rankings[judgment.id] = judgment.judge.id
            if judgment.judge.is_machine:
                self.machines.append(judgment)
            else:
                yield judgment


def _texts(votes: Votes, completions: Iterable[Completion]) -> tuple[list[str], list[str]]:
    wanted = set(votes.items)
    found = {item.id: (item.message.content, item.model) for item in completions if item.id in wanted}
    if missing := sorted(wanted - set(found)):
        raise DataError(f"judgments compare completion {missing[0]!r}, which is not among the completions")
    texts, models = zip(*(found[name] for name in votes.items), strict=True)
    return list(texts), list(models)


def _judges(votes: Votes, rows: list[dict[str, Any]], seen: _Seen) -> list[dict[str, Any]]:
    """Add kind, time and reliability to the judges' rows."""
    fit = fit_reliability(votes) if len(votes) <= MAX_RELIABILITY_VOTES else None
    low, high = fit.intervals() if fit is not None else (None, None)
    for index, row in enumerate(rows):
        times = seen.seconds.get(row["judge"])
        row["kind"] = seen.kinds[row["judge"]]
        row["median_seconds"] = statistics.median(times) if times else None
        row["reliability"] = None
        if fit is not None and low is not None and high is not None:
            ends = {"low": float(low[index]), "high": float(high[index])}
            row["reliability"] = {"value": float(fit.reliability[index]), **ends}
    return rows


def _mean_tau(votes: Votes, ranked: Mapping[str, str]) -> float | None:
    """Return the mean of Kendall's tau-b over pairs of rankings of the same completions; None without such."""
    same: defaultdict[tuple[str, ...], list[Floats]] = defaultdict(list)
    if ranked:
        for name, ranks in rankings(votes).items():
            if name in ranked:
                items = tuple(sorted(ranks))
                same[items].append(np.array([ranks[item] for item in items], dtype=np.float64))
    found = [
        tau
        for given in same.values()
        for number, one in enumerate(given)
        for other in given[:number]
        if np.isfinite(tau := kendall_tau(one, other))
    ]
    return statistics.fmean(found) if found else None


def _as_dict(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else estimate.as_dict()

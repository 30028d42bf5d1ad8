"""Outcomes of pairs -> preference pairs with texts, strengths, soft labels, weights and splits."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from harken.config.preferences import PreferencesConfig
from harken.errors import DataError
from harken.preferences.numeric import Ints, rows
from harken.preferences.outcomes import Outcomes, outcomes
from harken.preferences.split import split_of
from harken.preferences.votes import Votes, read_votes
from harken.records import Completion, Judgment, PreferencePair, Prompt, Split, content_id


@dataclass(frozen=True)
class VotePairs:
    """Preference pairs made of comparisons and rankings, and what became of every judgment and pair."""

    pairs: list[PreferencePair]
    facts: dict[str, Any]
    """JSON-able: the method, judgments by kind, pairs made and left out by reason, and what the method fitted."""
    notes: tuple[str, ...]
    """What a person should know, a line each."""


def pairs_from_votes(
    judgments: Iterable[Judgment],
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
    config: PreferencesConfig,
    *,
    by_text: bool = False,
) -> VotePairs:
    """Make one preference pair of every two completions that comparisons and rankings compare.

    The split is by prompt. Where all have the same prompt, or `by_text` says that completions are in other data, too,
    it is by completion, and a pair whose sides fall on different sides of the split is left out. Nothing is left out
    without being counted. The same data gives the same pairs, in whatever order it comes.

    Raises:
        DataError: a judgment compares completions that are missing or belong to different prompts; or as the method.
    """
    votes = read_votes(judgments, both_bad=config.both_bad)
    facts: dict[str, Any] = {"resolve": config.resolve.kind, "judgments": votes.counts}
    if len(votes) == 0:
        return VotePairs([], facts | {"pairs": {}}, _notes(facts, 0))
    texts = _Texts(votes, prompts, completions, config, by_text=by_text)
    found = outcomes(votes, config.resolve)
    facts |= found.facts
    pairs, counts = _pairs(votes, found, texts, config)
    facts["pairs"] = dict(sorted(counts.items()))
    return VotePairs(pairs, facts, _notes(facts, len(texts.prompts)))


class _Texts:
    """The completions and prompts that votes speak of, and on which side of the split they fall."""

    def __init__(
        self,
        votes: Votes,
        prompts: Iterable[Prompt],
        completions: Iterable[Completion],
        config: PreferencesConfig,
        *,
        by_text: bool,
    ) -> None:
        wanted = set(votes.items)
        found = {item.id: item for item in completions if item.id in wanted}
        if missing := sorted(wanted - set(found)):
            raise DataError(
                f"judgments compare completion {missing[0]!r}, which is not among the completions; export them together"
            )
        self.completions = [found[name] for name in votes.items]
        prompt_of = [item.prompt_id for item in self.completions]
        for one, other, judgment in rows(votes.first, votes.second, votes.judgment):
            if prompt_of[one] != prompt_of[other]:
                raise DataError(
                    f"judgment {votes.judgment_ids[judgment]!r} compares completions of the prompts "
                    f"{prompt_of[one]!r} and {prompt_of[other]!r}; expected completions of one prompt"
                )
        named = set(prompt_of)
        self.prompts = {prompt.id: prompt for prompt in prompts if prompt.id in named}
        if missing := sorted(named - set(self.prompts)):
            raise DataError(f"completions belong to prompt {missing[0]!r}, which is not among the prompts")
        by_text = by_text or len(self.prompts) == 1
        self.splits: list[Split] = [self._split(item, config, by_text=by_text) for item in self.completions]

    def _split(self, completion: Completion, config: PreferencesConfig, *, by_text: bool) -> Split:
        messages = self.prompts[completion.prompt_id].messages
        text = completion.message.content if by_text else "\n".join(message.content for message in messages)
        return split_of(text, heldout_fraction=config.heldout_fraction, seed=config.seed)


def _pairs(
    votes: Votes, found: Outcomes, texts: _Texts, config: PreferencesConfig
) -> tuple[list[PreferencePair], Counter[str]]:
    strengths = _strengths(votes, found)
    num_votes = np.bincount(found.pair)
    weights = np.bincount(found.pair, weights=votes.weight) / num_votes
    order = np.argsort(found.pair, kind="stable")
    judgments_of = np.split(votes.judgment[order], np.cumsum(num_votes)[:-1])
    counts: Counter[str] = Counter()
    made: dict[Split, list[PreferencePair]] = {"train": [], "heldout": []}
    for number, (first, second) in enumerate(rows(found.first, found.second)):
        p, is_tie = float(found.probability[number]), bool(found.is_tie[number])
        better, worse = (int(first), int(second)) if p >= 0.5 else (int(second), int(first))
        chosen, rejected = texts.completions[better], texts.completions[worse]
        split: Split = texts.splits[better]
        if reason := _why_not(is_tie, chosen, rejected, split == texts.splits[worse], split, config):
            counts[reason] += 1
            continue
        strength = 0 if is_tie else int(strengths[number])
        made[split].append(
            PreferencePair(
                id=content_id("votes", chosen.id, rejected.id),
                prompt=texts.prompts[chosen.prompt_id],
                chosen=chosen.message,
                rejected=rejected.message,
                strength=strength,  # pyright: ignore[reportArgumentType]
                soft_label=0.5 if is_tie else max(p, 1 - p) if config.soft_labels else 1.0,
                weight=float(weights[number]),
                group=chosen.prompt_id,
                split=split,
                judgment_ids=tuple(votes.judgment_ids[n] for (n,) in rows(judgments_of[number])),
                margin=None if found.margins is None else 0.0 if is_tie else found.margins[strength],
            )
        )
        counts["ties kept" if is_tie else "made"] += 1
    kept: list[PreferencePair] = []
    limits: dict[Split, int | None] = {"train": config.max_pairs, "heldout": config.max_heldout_pairs}
    for split, limit in limits.items():
        random.Random(f"{config.seed}/votes/{split}").shuffle(made[split])
        kept += made[split][:limit]
    if over := sum(map(len, made.values())) - len(kept):
        counts["over the limit"] = over
    return kept, counts


def _why_not(
    is_tie: bool, chosen: Completion, rejected: Completion, same_split: bool, split: Split, config: PreferencesConfig
) -> str | None:
    if chosen.message.content == rejected.message.content:
        return "identical texts"
    if not same_split:
        return "sides on both sides of the split"
    if is_tie and config.ties == "drop":
        return "ties dropped"
    # A held-out tie has no right answer to be measured against.
    return "held-out ties dropped" if is_tie and split == "heldout" else None


def _strengths(votes: Votes, found: Outcomes) -> Ints:
    """Return strengths (N,): the mean of what was said, towards the side that won, or 1 where nothing was said."""
    says = (votes.strength >= 0) | (votes.outcome == 0)
    signed = np.where(says, votes.outcome * np.maximum(votes.strength, 0), 0).astype(np.float64)
    size = len(found.first)
    totals = np.bincount(found.pair, weights=signed, minlength=size)
    num_said = np.bincount(found.pair, weights=says, minlength=size)
    given = np.bincount(found.pair, weights=votes.strength >= 0, minlength=size) > 0
    towards = np.where(found.probability >= 0.5, totals, -totals) / np.maximum(num_said, 1)
    return np.where(given, np.clip(np.rint(towards), 0, 3), 1).astype(np.int64)


def _notes(facts: dict[str, Any], num_prompts: int) -> tuple[str, ...]:
    kinds = {kind: kind.replace("_", " ") for kind in ("both_bad", "skip", "superseded", "unsure")}
    kinds["abstention"] = "abstentions"
    counts = {kind: count for kind, count in facts["judgments"].items() if kind in kinds}
    notes = [f"{count} judgments are {kinds[kind]}" for kind, count in counts.items()]
    left_out = {reason: n for reason, n in facts.get("pairs", {}).items() if reason not in ("made", "ties kept")}
    notes += [f"{count} compared pairs left out: {reason}" for reason, count in left_out.items()]
    num_components = facts.get("num_components", 0)
    if num_components > num_prompts:
        notes.append(
            f"the completions of {num_prompts} prompts fall into {num_components} groups that no vote connects; scores "
            "of different groups cannot be compared (pairs are within groups)"
        )
    if "margins" in facts:
        shown = ", ".join(f"{margin:.3f}" for margin in facts["margins"])
        notes.append(f"margins by strength, from the cut points: {shown}")
    return tuple(notes)

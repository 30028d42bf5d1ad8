"""Entries -> what training reads: pairs, demonstrations, prompts; one judgment at a time, nothing resolved.

`harken preferences` resolves several judgments of the same completions; here each stands for itself.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Literal

from harken.feedback.exchange.entry import Entry
from harken.records import (
    Comparison,
    Completion,
    Correction,
    Demonstration,
    DemonstrationAnswer,
    Judgment,
    Message,
    PreferencePair,
    RankingAnswer,
    content_id,
)

Strength = Literal[0, 1, 2, 3]


def better_and_worse(entry: Entry) -> Iterator[tuple[str, str, Strength | None]]:
    """Yield (better text, worse text, strength) of every comparison that was won and of all pairs of a ranking."""
    if entry.pair is not None:
        yield entry.pair.chosen.content, entry.pair.rejected.content, entry.pair.strength
        return
    for _, winner, loser, strength in _won(entry):
        yield winner.message.content, loser.message.content, strength


def _won(entry: Entry) -> Iterator[tuple[Judgment, Completion, Completion, Strength | None]]:
    by_id = {completion.id: completion for completion in entry.completions}
    for judgment in entry.judgments:
        answer = judgment.answer
        if isinstance(answer, Comparison) and answer.winner is not None:
            for name in judgment.shown:
                if name != answer.winner:
                    yield judgment, by_id[answer.winner], by_id[name], answer.strength
        elif isinstance(answer, RankingAnswer):
            ranks = answer.ranks
            for one, other in combinations(sorted(ranks, key=lambda name: ranks[name]), 2):
                if ranks[one] < ranks[other]:
                    yield judgment, by_id[one], by_id[other], None


def pairs_of(entry: Entry) -> Iterator[PreferencePair]:
    """Yield the pairs of an entry that can be trained on: the better text is not empty and differs from the worse."""
    if entry.pair is not None:
        yield entry.pair
        return
    for judgment, winner, loser, strength in _won(entry):
        better, worse = winner.message, loser.message
        if not better.content.strip() or better.content == worse.content:
            continue
        yield PreferencePair(
            id=content_id(judgment.id, winner.id, loser.id),
            prompt=entry.prompt,
            chosen=better,
            rejected=worse,
            strength=1 if strength is None else strength,
            group=entry.prompt.id,
            split=entry.split or "train",
            judgment_ids=(judgment.id,),
        )


def num_repeated(entry: Entry) -> int:
    """Return how many demonstrations and corrections say what another one of the entry says."""
    answers = [judgment.answer for judgment in entry.judgments]
    texts = [answer.text for answer in answers if isinstance(answer, DemonstrationAnswer | Correction)]
    return len(texts) - len(set(texts))


def demonstrations_of(entry: Entry) -> Iterator[Demonstration]:
    """Yield what an entry shows to imitate: demonstrations, corrections, and completions that won or rank first."""
    texts: dict[str, None] = {}
    by_id = {completion.id: completion.message.content for completion in entry.completions}
    for judgment in entry.judgments:
        answer = judgment.answer
        match answer:
            case DemonstrationAnswer() | Correction():
                texts[answer.text] = None
            case Comparison() if answer.winner is not None:
                texts[by_id[answer.winner]] = None
            case RankingAnswer():
                texts.update({by_id[name]: None for name, rank in answer.ranks.items() if rank == 1})
            case _:
                continue
    if not entry.judgments:
        texts.update(dict.fromkeys(by_id.values()))
    for text in texts:
        if text.strip():
            yield Demonstration(
                id=content_id(entry.prompt.id, text),
                prompt=entry.prompt,
                completion=Message(role="assistant", content=text),
                source=entry.prompt.source,
                split=entry.split or "train",
            )

"""A model, a reward or a word list as judge: it compares pairs like a person, asked in both orders.

Its judgments stand in the store beside those of people, under the kind `model` or `rule`, and are never counted with
them unless that is asked for (`harken preferences --set judges=...`).
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harken.feedback.language_judge import LanguageJudge, Verdict
from harken.feedback.store.adding import utc_now
from harken.feedback.store.connect import Database
from harken.feedback.store.machine import AskedPair, add_made, known_judgments
from harken.progress import QUIET, Reporter
from harken.protocols import PairwiseJudge, Reward, checked_preferences, checked_scores
from harken.records import Comparison, Completion, Judge, Judgment, Prompt, Timing, content_id

_MAX_REASONS = 20_000


@dataclass(frozen=True)
class ModelJudge:
    """Who judges, and by what."""

    name: str
    """Of the model or the word list, with no path of this machine in it."""
    kind: Literal["model", "rule"]
    version: str
    """Of the prompt template with its criteria, or of the scores; judgments carry it as their guideline."""
    judge: PairwiseJudge

    @property
    def record(self) -> Judge:
        """Return who the store says has judged."""
        return Judge(id=f"{self.kind}:{self.name}", kind=self.kind)

    def judgment_id(self, pair: AskedPair) -> str:
        """Return the id of this judge's judgment of a pair: asked again it is the same judgment."""
        return content_id("judged", self.record.id, self.version, pair.one.id, pair.other.id)


class ByScore:
    """Any reward as a pairwise judge: the higher score is better, equal scores are a tie."""

    def __init__(self, reward: Reward) -> None:
        """Use a reward; the order in which it is asked cannot matter to it."""
        self._reward = reward

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> list[float]:
        """Return the probability that the first is better, by the difference of the scores as logits.

        Raises:
            RewardError: as the reward.
        """
        scores = [checked_scores(self._reward, prompts, side) for side in (first, second)]
        return [1 / (1 + math.exp(-max(-700.0, min(700.0, a - b)))) for a, b in zip(*scores, strict=True)]


@dataclass(frozen=True)
class JudgedCounts:
    """What became of the pairs."""

    outcomes: dict[str, int]
    """Judgments that were added: `win`, `tie`, `unsure`."""
    num_flipped: int
    """Among them, ties because the judge took the first, or the second, in both orders."""
    num_known: int
    """Pairs that this judge had judged before."""


def judge_pairs(
    database: Database,
    pairs: Sequence[AskedPair],
    by: ModelJudge,
    *,
    batch_size: int = 16,
    reporter: Reporter = QUIET,
) -> JudgedCounts:
    """Let a judge compare pairs and add its judgments, a batch a transaction; the same call again goes on.

    Each pair is asked in both orders. It is a win where both verdicts name the same completion, a tie where they do not
    or one says tie, and `unsure` where one cannot be read.

    Raises:
        RewardError: the judge failed; what was judged before stays.
        SamplerError: as RewardError, of a judge that is a model.
    """
    names = [by.judgment_id(pair) for pair in pairs]
    known = known_judgments(database, names)
    todo = [pair for pair, name in zip(pairs, names, strict=True) if name not in known]
    counts: Counter[str] = Counter()
    num_flipped = 0
    starts = range(0, len(todo), batch_size)
    for start in reporter.track(starts, "judge", total=len(starts)):
        batch = todo[start : start + batch_size]
        began = time.time()
        # Which order counts as shown is drawn by the pair's own name: both were asked.
        shown = [(p.one, p.other) if int(by.judgment_id(p), 16) % 2 else (p.other, p.one) for p in batch]
        forward = _verdicts(by.judge, batch, shown)
        backward = _verdicts(by.judge, batch, [(b, a) for a, b in shown])
        seconds = (time.time() - began) / len(batch)
        made: list[Judgment] = []
        for pair, sides, one, other in zip(batch, shown, forward, backward, strict=True):
            answer, is_flipped = _resolve(sides, one, other)
            num_flipped += is_flipped
            counts[answer.outcome] += 1
            timing = Timing(shown_at=utc_now(began), submitted_at=utc_now(), active_s=round(seconds, 3))
            made.append(
                Judgment(
                    id=by.judgment_id(pair),
                    judge=by.record,
                    prompt_id=pair.prompt.id,
                    shown=tuple(side.id for side in sides),
                    answer=answer,
                    guideline=by.version,
                    rationale=_reasons(one, other),
                    timing=timing,
                    source="harken collect judge",
                )
            )
        add_made(database, judged=made)
    return JudgedCounts(dict(sorted(counts.items())), num_flipped, len(pairs) - len(todo))


def _verdicts(
    judge: PairwiseJudge, batch: Sequence[AskedPair], sides: Sequence[tuple[Completion, Completion]]
) -> list[Verdict]:
    prompts = [pair.prompt for pair in batch]
    first, second = [side[0] for side in sides], [side[1] for side in sides]
    if isinstance(judge, LanguageJudge):
        return judge.verdicts(prompts, first, second)
    return [Verdict(value) for value in checked_preferences(judge, prompts, first, second)]


def _resolve(sides: tuple[Completion, Completion], one: Verdict, other: Verdict) -> tuple[Comparison, bool]:
    """Return the outcome of both orders, and whether they named different completions."""
    if one.probability is None or other.probability is None:
        return Comparison(outcome="unsure"), False
    forward, backward = one.probability - 0.5, 0.5 - other.probability
    if forward * backward > 0:
        return Comparison(outcome="win", winner=sides[0 if forward > 0 else 1].id), False
    return Comparison(outcome="tie"), forward * backward < 0


def _reasons(one: Verdict, other: Verdict) -> str:
    """Return what was said in each order."""
    forward, backward = (
        verdict.reasons or f"the first is better with probability {verdict.probability:.3f}" for verdict in (one, other)
    )
    half = _MAX_REASONS // 2
    return f"As shown: {forward[:half]}\n\nThe other way round: {backward[:half]}"

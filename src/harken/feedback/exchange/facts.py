"""What judgments hold, as facts that a format keeps or loses; so a loss can be said before anything is written."""

from collections.abc import Iterable
from enum import StrEnum

from harken.feedback.exchange.entry import Entry
from harken.records import (
    Abstention,
    Comparison,
    Completion,
    Correction,
    Critique,
    DemonstrationAnswer,
    Judgment,
    RankingAnswer,
    Rating,
    Spans,
)


class Fact(StrEnum):
    """One kind of thing that an entry may hold; the value is what a loss is called."""

    wins = "who won comparisons"
    ties = "ties"
    both_bad = "comparisons of which both sides are bad"
    unsure = "comparisons of which the judge was unsure"
    skips = "comparisons that were skipped"
    many = "choices between more than two completions"
    strengths = "how much better the winner is"
    rankings = "rankings"
    rank_ties = "equal ranks, and completions without a rank"
    ratings = "ratings"
    turns = "ratings of single turns of a conversation, or of all of it"
    spans = "error spans"
    severities = "how severe the error spans are"
    corrections = "corrections"
    demonstrations = "demonstrations"
    critiques = "critiques"
    abstentions = "tasks other than comparisons that were skipped, or left without an answer"
    judges = "who judged"
    kinds = "whether a person, a model or a rule judged"
    order = "in which order the completions were shown"
    rationales = "rationales"
    shown_times = "when the completions were shown"
    times = "when the judgments were given"
    durations = "how long the judges took"
    guidelines = "versions of the guideline"
    history = "which judgment replaces which"
    models = "which model wrote a completion"
    sampling = "sampling settings, seeds and tokens of completions"
    systems = "system messages"
    begun = "beginnings of the assistant that the completion continues"
    splits = "the split into training and held-out"
    soft = "soft labels, weights and differences of pairs"
    judged_alone = "completions that nobody judged"
    flags = "what judges reported beside their answers"
    tasks = "the task and project of the web app, and the right answer where it was a test"


ANSWERS = frozenset(
    {
        Fact.wins,
        Fact.ties,
        Fact.both_bad,
        Fact.unsure,
        Fact.skips,
        Fact.many,
        Fact.rankings,
        Fact.ratings,
        Fact.turns,
        Fact.spans,
        Fact.corrections,
        Fact.demonstrations,
        Fact.critiques,
        Fact.abstentions,
    }
)
"""The facts without which the whole judgment is lost; losing any other only takes something from it."""


def answer_fact(judgment: Judgment) -> frozenset[Fact]:
    """Return the facts of `ANSWERS` that a judgment needs a format to keep."""
    answer = judgment.answer
    match answer:
        case Comparison():
            kind = {
                "win": Fact.wins,
                "tie": Fact.ties,
                "both_bad": Fact.both_bad,
                "unsure": Fact.unsure,
                "skip": Fact.skips,
            }[answer.outcome]
            return frozenset({kind, Fact.many} if len(judgment.shown) != 2 else {kind})
        case RankingAnswer():
            return frozenset({Fact.rankings})
        case Rating():
            return frozenset({Fact.ratings if answer.turns is None and answer.scope is None else Fact.turns})
        case Spans():
            return frozenset({Fact.spans})
        case Correction():
            return frozenset({Fact.corrections})
        case DemonstrationAnswer():
            return frozenset({Fact.demonstrations})
        case Critique():
            return frozenset({Fact.critiques})
        case Abstention():
            return frozenset({Fact.abstentions})


def facts_of(entry: Entry) -> set[Fact]:
    """Return all facts that an entry holds."""
    found: set[Fact] = set()
    for judgment in entry.judgments:
        found |= answer_fact(judgment)
        found |= _details(judgment)
    found |= _completion_facts(entry)
    first, *_, last = (*entry.prompt.messages, entry.prompt.messages[-1])
    if first.role == "system" or any(message.role == "system" for message in entry.prompt.messages):
        found.add(Fact.systems)
    if last.role == "assistant":
        found.add(Fact.begun)
    if entry.split is not None:
        found.add(Fact.splits)
    pair = entry.pair
    if pair is not None and (pair.soft_label, pair.weight, pair.difference) != (1.0, 1.0, None):
        found.add(Fact.soft)
    return found


def _details(judgment: Judgment) -> set[Fact]:
    answer, timing = judgment.answer, judgment.timing
    is_order_known = len(judgment.shown) > 1 and list(judgment.shown) != sorted(judgment.shown)
    present: dict[Fact, object] = {
        Fact.judges: judgment.judge.kind != "import",
        Fact.kinds: judgment.judge.kind not in ("import", "person"),
        Fact.order: is_order_known,
        Fact.rationales: judgment.rationale,
        Fact.shown_times: timing.shown_at,
        Fact.times: timing.submitted_at,
        Fact.durations: timing.active_s is not None,
        Fact.guidelines: judgment.guideline,
        Fact.history: judgment.supersedes,
        Fact.flags: judgment.flags,
        Fact.tasks: judgment.assignment,
        Fact.strengths: isinstance(answer, Comparison) and answer.strength is not None,
        Fact.rank_ties: isinstance(answer, RankingAnswer)
        and (len(set(answer.ranks.values())) < len(answer.ranks) or set(answer.ranks) != set(judgment.shown)),
        Fact.severities: isinstance(answer, Spans) and any(span.severity != "major" for span in answer.spans),
    }
    return {fact for fact, is_present in present.items() if is_present}


def _completion_facts(entry: Entry) -> set[Fact]:
    judged = {name for judgment in entry.judgments for name in judgment.shown}
    found: set[Fact] = set()
    for completion in entry.completions:
        if completion.model:
            found.add(Fact.models)
        if _has_sampling(completion):
            found.add(Fact.sampling)
        if completion.id not in judged:
            found.add(Fact.judged_alone)
    return found


def _has_sampling(completion: Completion) -> bool:
    optional = (completion.sampling, completion.seed, completion.finish_reason, completion.num_tokens)
    return any(value is not None for value in (*optional, completion.token_ids, completion.sampler_logprobs))


def all_facts(entries: Iterable[Entry]) -> set[Fact]:
    """Return the facts of many entries."""
    found: set[Fact] = set()
    for entry in entries:
        found |= facts_of(entry)
    return found

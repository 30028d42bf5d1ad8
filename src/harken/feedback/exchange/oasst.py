"""Open-Assistant: message trees with ranked replies and, where they were exported, ranking events by single people.

Trees (`message_tree_id`), threads (`thread_id`) and single messages (`message_id`) are read. A prompt with two or more
ranked replies is one ranking by `oasst-consensus`; each ranking event is one judgment more. `rank` 0 is best.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_dict,
    as_list,
    check_turns,
    each,
    judged_by,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.records import (
    Comparison,
    Completion,
    DemonstrationAnswer,
    Judge,
    Judgment,
    Message,
    Prompt,
    RankingAnswer,
    content_id,
)

KEEPS = frozenset({Fact.rankings, Fact.both_bad, Fact.many, Fact.judges, Fact.order, Fact.models})
CONSENSUS = Judge(id="oasst-consensus", kind="import")
_MAX_TREE_DEPTH = 100


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry for each prompt with replies."""
    singles: dict[str, tuple[int, Row]] = {}

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "message_tree_id" in row and "prompt" in row:
            yield from _tree(row_number, as_dict(row["prompt"], "prompt"), reading)
        elif "thread" in row:
            yield from _thread(row_number, row)
        else:
            text(row, "text")
            name = text(row, "message_id")
            if name in singles:
                raise BadRow(f"message {name!r} stands there twice")
            singles[name] = row_number, {**row, "replies": []}

    yield from each(rows, one)
    yield from each(_planted(singles), lambda row_number, row: _tree(row_number, row, reading))


def _planted(singles: dict[str, tuple[int, Row]]) -> Iterator[tuple[int, Row | BadRow]]:
    """Put single messages together into trees."""
    roots: list[tuple[int, Row | BadRow]] = []
    for row_number, row in singles.values():
        parent = row.get("parent_id")
        if parent is None:
            roots.append((row_number, row))
        elif parent in singles:
            singles[parent][1]["replies"].append(row)
        else:
            roots.append((row_number, BadRow(f"parent {parent!r} is not in the file", "incomplete")))
    yield from roots


@dataclass(frozen=True)
class _Node:
    """A message by a person, with what was said before."""

    row: Row
    said: tuple[Message, ...]


def _tree(row_number: int, root: Row, reading: Reading) -> Iterator[Entry]:
    waiting = [_Node(root, ())]
    while waiting:
        node = waiting.pop()
        said = (*node.said, message(text(node.row, "role"), text(node.row, "text")))
        if len(said) > _MAX_TREE_DEPTH:
            raise BadRow(f"a conversation of more than {_MAX_TREE_DEPTH} messages")
        if node.row.get("deleted"):
            reading.note("message is marked as deleted")
        if node.row.get("labels"):
            reading.note("labels (means over people) are not imported")
        replies = [as_dict(reply, "a reply") for reply in as_list(node.row.get("replies") or [], "replies")]
        answers = [reply for reply in replies if reply.get("role") == "assistant"]
        if said[-1].role == "user" and answers:
            yield _entry(row_number, node.row, said, answers)
        waiting += [_Node(reply, said) for reply in reversed(replies)]


def _entry(row_number: int, row: Row, said: Sequence[Message], answers: list[Row]) -> Entry:
    prompt = make_prompt(said, id=_name(row, [one.content for one in said]))
    completions = [
        make_completion(
            prompt, text(answer, "text"), id=_name(answer, [prompt.id]), model=str(answer.get("model_name") or "")
        )
        for answer in answers
    ]
    by_id = {one.id: one for one in completions}
    ranks = {
        one.id: answer["rank"] + 1
        for one, answer in zip(completions, answers, strict=True)
        if isinstance(answer.get("rank"), int)
    }
    judgments: list[Judgment] = []
    if len(ranks) >= 2:
        # In the order of ids: the replies are sorted by rank, which is not how anyone saw them.
        both = [by_id[name] for name in sorted(ranks)]
        judgments.append(make_judgment("consensus", prompt, both, RankingAnswer(ranks=ranks), judge=CONSENSUS))
    events: Any = as_dict(row.get("events") or {}, "events").get("ranking") or []
    for place, event in enumerate(as_list(events, "ranking events")):
        judgments.append(_event(place, as_dict(event, "a ranking event"), prompt, by_id))
    if not judgments:
        judgments = _written(prompt, completions, answers)
    return Entry(row_number, prompt, tuple(completions), tuple(judgments))


def _name(row: Row, fallback: list[str]) -> str:
    return str(row["message_id"]) if row.get("message_id") else content_id("oasst", fallback, text(row, "text"))


def _event(place: int, event: Row, prompt: Prompt, by_id: dict[str, Completion]) -> Judgment:
    best_first = [str(name) for name in as_list(event.get("ranked_message_ids"), "ranked_message_ids")]
    if unknown := [name for name in best_first if name not in by_id]:
        raise BadRow(f"a ranking names reply {unknown[0]!r}, which is not there", "incomplete")
    positions = as_list(event.get("ranking"), "ranking")
    if sorted(positions) != list(range(len(best_first))):
        raise BadRow(f"ranking {positions} is not an order of {len(best_first)} replies")
    # ranking[k] is the position at which the k-th best reply was shown.
    was_shown = [by_id[name] for _, name in sorted(zip(positions, best_first, strict=True))]
    judge = judged_by(str(event.get("user_id") or f"unknown-{prompt.id}-{place}"))
    if event.get("not_rankable"):
        return make_judgment(place, prompt, was_shown, Comparison(outcome="both_bad"), judge=judge)
    ranks = {name: rank for rank, name in enumerate(best_first, start=1)}
    return make_judgment(place, prompt, was_shown, RankingAnswer(ranks=ranks), judge=judge)


def _written(prompt: Prompt, completions: list[Completion], answers: list[Row]) -> list[Judgment]:
    """Return replies that people wrote as demonstrations."""
    return [
        make_judgment(
            one.id,
            prompt,
            (),
            DemonstrationAnswer(text=one.message.content),
            judge=Judge(id=str(answer.get("user_id") or "oasst"), kind="person" if answer.get("user_id") else "import"),
        )
        for one, answer in zip(completions, answers, strict=True)
        if not answer.get("synthetic") and one.message.content.strip()
    ]


def _thread(row_number: int, row: Row) -> Iterator[Entry]:
    parts = [as_dict(part, "a message of the thread") for part in as_list(row["thread"], "thread")]
    said: list[Message] = []
    for part in parts:
        own = message(text(part, "role"), text(part, "text"))
        if own.role == "assistant" and said:
            yield _entry(row_number, {"text": said[-1].content}, said, [part])
        said.append(own)


def write(entry: Entry) -> list[Row]:
    """Return the tree of an entry: the ranks of the consensus, and one ranking event for each other judgment.

    Raises:
        BadRow: a judgment that no tree can hold.
    """
    check_turns(entry.prompt)
    said = entry.prompt.messages
    if any(set(one.shown) != {own.id for own in entry.completions} or len(one.shown) < 2 for one in entry.judgments):
        raise BadRow("a judgment of some of the completions, or of one", "not supported")
    consensus = next((one for one in entry.judgments if _is_consensus(one)), None)
    events = [_written_event(entry, judgment) for judgment in entry.judgments if judgment is not consensus]
    replies: list[Row] = [
        {
            "message_id": one.id,
            "parent_id": entry.prompt.id,
            "role": "assistant",
            "text": one.message.content,
            "synthetic": bool(one.model),
            "model_name": one.model or None,
            "rank": None,
            "replies": [],
        }
        for one in entry.completions
    ]
    node: Row = {"events": {"ranking": [event for event in events if event is not None]}, "replies": replies}
    if consensus is not None and isinstance(consensus.answer, RankingAnswer):
        _best_first(consensus, consensus.answer)
        for reply in replies:
            reply["rank"] = consensus.answer.ranks[reply["message_id"]] - 1
    for index in range(len(said) - 1, -1, -1):
        role = "prompter" if said[index].role == "user" else "assistant"
        is_last = index == len(said) - 1
        name = entry.prompt.id if is_last else content_id("oasst", entry.prompt.id, index)
        node = {"message_id": name, "role": role, "text": said[index].content, **node}
        if index:
            node = {"replies": [node]}
    return [{"message_tree_id": node["message_id"], "tree_state": "ready_for_export", "prompt": node}]


def _is_consensus(judgment: Judgment) -> bool:
    """Say whether a ranking is one that a tree's ranks give back: nobody's, and with no order in which it was shown."""
    is_ranking = isinstance(judgment.answer, RankingAnswer)
    return is_ranking and judgment.judge == CONSENSUS and list(judgment.shown) == sorted(judgment.shown)


def _best_first(judgment: Judgment, answer: RankingAnswer) -> list[str]:
    found = sorted(answer.ranks, key=lambda name: answer.ranks[name])
    if [answer.ranks[name] for name in found] != list(range(1, len(judgment.shown) + 1)):
        raise BadRow("equal ranks, or completions without a rank", "not supported")
    return found


def _written_event(entry: Entry, judgment: Judgment) -> Row | None:
    answer = judgment.answer
    if isinstance(answer, RankingAnswer):
        best_first = _best_first(judgment, answer)
    elif isinstance(answer, Comparison) and answer.outcome == "both_bad":
        best_first = list(judgment.shown)
    else:
        return None
    return {
        "type": "ranking",
        "user_id": judgment.judge.id,
        "ranking": [judgment.shown.index(name) for name in best_first],
        "ranked_message_ids": best_first,
        "ranking_parent_id": entry.prompt.id,
        "not_rankable": True if isinstance(answer, Comparison) else None,
    }

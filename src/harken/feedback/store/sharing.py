"""Exports for others: pseudonyms of one scope, no free text by judges unless asked for, personal data redacted."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from harken.feedback.privacy.keys import Keys
from harken.feedback.privacy.redact import Redactor
from harken.feedback.store.adding import bodies_of, chunks
from harken.feedback.store.conversations import conversation_prompts
from harken.feedback.store.people_tables import withdrawals
from harken.feedback.store.tables import completions, judgments, prompts
from harken.records import Completion, Judge, Judgment, Prompt, Timing

FREE_TEXT = ("critique", "correction", "demonstration")
"""Types of answers that are texts written by the judge."""


@dataclasses.dataclass(frozen=True)
class Sharing:
    """How an export for others differs from the store."""

    scope: str
    """Whom it is for: two scopes share no name of a person or judgment."""
    keys: Keys
    redactor: Redactor
    include_text: bool = False
    """Keep rationales and written answers, redacted."""


def is_withdrawn(prompt_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that a prompt is of a live chat of somebody who withdrew; it is in no export, as theirs."""
    return prompt_id.in_(conversation_prompts(select(withdrawals.c.person_id)))


def withdrawn_judgments(connection: Connection) -> set[str]:
    """Return ids of judgments by people who withdrew, and of judgments about what they wrote into the live chat."""
    people = select(withdrawals.c.person_id)
    theirs = judgments.c.judge_id.in_(people) | is_withdrawn(judgments.c.prompt_id)
    return set(connection.execute(select(judgments.c.id).where(theirs)).scalars())


def without_links(body: str, gone: set[str]) -> str:
    """Return a judgment's body; it no longer says that it supersedes one that is gone."""
    if '"supersedes"' not in body:
        return body
    found = Judgment.model_validate_json(body)
    if found.supersedes not in gone:
        return body
    return found.model_copy(update={"supersedes": None}).model_dump_json(exclude_none=True)


class SharedBodies:
    """The records of a store as lines of a shared export, and what was done to them."""

    def __init__(self, connection: Connection, sharing: Sharing) -> None:
        self._connection = connection
        self._sharing = sharing
        self.num_texts_left_out = 0
        """Rationales and written answers."""

    def prompts(self) -> Iterator[str]:
        """Yield prompts in order of arrival, redacted."""
        query = select(prompts.c.body).where(~is_withdrawn(prompts.c.id)).order_by(prompts.c.seq)
        for row in self._connection.execute(query):
            record = Prompt.model_validate_json(row.body)
            yield self._sharing.redactor.prompt(record).model_dump_json(exclude_none=True)

    def completions(self) -> Iterator[str]:
        """Yield completions in order of arrival, redacted."""
        query = select(completions.c.body).where(~is_withdrawn(completions.c.prompt_id)).order_by(completions.c.seq)
        for row in self._connection.execute(query):
            record = Completion.model_validate_json(row.body)
            yield self._sharing.redactor.completion(record).model_dump_json(exclude_none=True)

    def judgments(self) -> Iterator[str]:
        """Yield judgments in the order of their new names: the order of arrival would link two scopes."""
        gone = withdrawn_judgments(self._connection)
        if not self._sharing.include_text:
            texts = select(judgments.c.id).where(judgments.c.answer_type.in_(FREE_TEXT), judgments.c.id.not_in(gone))
            left_out = set(self._connection.execute(texts).scalars())
            self.num_texts_left_out += len(left_out)
            gone |= left_out
        ids = self._connection.execute(select(judgments.c.id)).scalars()
        names = sorted((self._name(found), found) for found in ids if found not in gone)
        for chunk in chunks(names):
            bodies = dict(bodies_of(self._connection, judgments, (old for _, old in chunk)))
            for name, old in chunk:
                yield self._judgment(name, bodies[old], gone).model_dump_json(exclude_none=True)

    def _name(self, judgment: str) -> str:
        return self._sharing.keys.judgment_name(judgment, self._sharing.scope)

    def _judgment(self, name: str, body: str, gone: set[str]) -> Judgment:
        record = Judgment.model_validate_json(body)
        judge = record.judge
        if judge.kind in ("person", "import"):
            judge = Judge(id=self._sharing.keys.pseudonym(judge.id, self._sharing.scope), kind=judge.kind)
        supersedes = None if record.supersedes in gone else record.supersedes
        changes: dict[str, Any] = {
            "id": name,
            "judge": judge,
            "supersedes": None if supersedes is None else self._name(supersedes),
            "timing": coarse(record.timing),
        }
        if record.assignment is not None:
            # The lease is one act of one person: its id would link two scopes.
            lease = self._name(record.assignment.lease_id)
            changes["assignment"] = record.assignment.model_copy(update={"lease_id": lease})
        if not self._sharing.include_text:
            self.num_texts_left_out += bool(record.rationale) + sum(bool(flag.note) for flag in record.flags or ())
            changes["rationale"] = ""
            changes["flags"] = record.flags and tuple(flag.model_copy(update={"note": ""}) for flag in record.flags)
        return self._sharing.redactor.judgment(record.model_copy(update=changes))

    def info(self) -> dict[str, Any]:
        """Return what the manifest says about it; call it after everything was read."""
        redactor = self._sharing.redactor
        return {
            "scope": self._sharing.scope,
            "key_id": self._sharing.keys.newest,
            "free_text": "included, redacted" if self._sharing.include_text else "left out",
            "num_texts_left_out": self.num_texts_left_out,
            "personal_data": {"num_texts": redactor.num_texts, "found": dict(sorted(redactor.counts.items()))},
        }


def coarse(timing: Timing) -> Timing:
    """Return times by day and whole seconds: exact ones would link the judgments of two exports."""
    day = None if timing.submitted_at is None else timing.submitted_at[:10]
    seconds = None if timing.active_s is None else float(round(timing.active_s))
    return Timing(submitted_at=day, active_s=seconds)

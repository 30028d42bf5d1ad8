"""Adding records in one transaction: idempotent by id, with every reference checked."""

import contextlib
import datetime
import gc
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, select

from harken.errors import DataError
from harken.feedback.store import tables
from harken.records import Completion, Judgment, Prompt

_CHUNK = 500
"""Rows looked up and inserted at once; SQLite allows at least 999 values in one statement."""

RecordT = TypeVar("RecordT", Prompt, Completion, Judgment)
ItemT = TypeVar("ItemT")


class Adding:
    """One transaction of `add`: what is known so far, and how many records were there before."""

    def __init__(self, connection: Connection, is_erased: Callable[[str], bool] | None = None) -> None:
        """Begin.

        Args:
            connection: in a write transaction.
            is_erased: True for a judge whose judgments, or a prompt of a live chat that, may not come back; None where
                nobody was erased.
        """
        self._connection = connection
        self._is_erased = is_erased
        self._erased_ids: set[str] = set()
        self._erased_prompts: set[str] = set()
        self._waiting: list[Judgment] = []
        self._known_prompts: set[str] = set()
        self._prompt_of_completion: dict[str, str] = {}
        self.num_already_there = 0
        self.num_erased = 0

    def prompts(self, records: Iterable[Prompt]) -> int:
        """Insert new prompts and return their number."""
        return sum(
            len(self._insert(tables.prompts, chunk, {record.id: {} for record in chunk}))
            for chunk in chunks(self._not_erased(records))
        )

    def _not_erased(self, records: Iterable[Prompt]) -> Iterator[Prompt]:
        """Yield all prompts but what erased people wrote into a live chat."""
        for record in records:
            if record.source == "chat" and self._is_erased is not None and self._is_erased(record.id):
                self._erased_prompts.add(record.id)
            else:
                yield record

    def completions(self, records: Iterable[Completion]) -> int:
        """Insert new completions and return their number."""
        count = 0
        for chunk in chunks(record for record in records if record.prompt_id not in self._erased_prompts):
            self._learn_prompts({record.prompt_id for record in chunk})
            for record in chunk:
                if record.prompt_id not in self._known_prompts:
                    raise _unknown("completion", record.id, "prompt", record.prompt_id)
            columns = {record.id: {"prompt_id": record.prompt_id} for record in chunk}
            count += len(self._insert(tables.completions, chunk, columns))
        return count

    def judgments(self, records: Iterable[Judgment]) -> int:
        """Insert new judgments and return their number; some may wait for `finish`."""
        return self._judgments(self._of_people_not_erased(records))

    def finish(self) -> int:
        """Insert the judgments that waited, check what all supersede, and return how many were new.

        Raises:
            DataError: a judgment supersedes one that is nowhere.
        """
        count = self._judgments(self._without_erased(record) for record in self._waiting)
        self._check_superseded()
        return count

    def _judgments(self, records: Iterable[Judgment]) -> int:
        count = 0
        now = utc_now()
        for chunk in chunks(records):
            self._check_references(chunk)
            columns = {record.id: judgment_columns(record, now) for record in chunk}
            new = self._insert(tables.judgments, chunk, columns)
            rows = [
                {"judgment_id": record.id, "position": position, "completion_id": completion_id}
                for record in new
                for position, completion_id in enumerate(record.shown)
            ]
            if rows:
                self._connection.execute(tables.shown.insert(), rows)
            count += len(new)
        return count

    def _of_people_not_erased(self, records: Iterable[Judgment]) -> Iterable[Judgment]:
        if self._is_erased is None:
            return records
        return self._filtered(records, self._is_erased)

    def _filtered(self, records: Iterable[Judgment], is_erased: Callable[[str], bool]) -> Iterator[Judgment]:
        known: dict[str, bool] = {}
        for record in records:
            judge = record.judge.id
            if judge not in known:
                known[judge] = is_erased(judge)
            if known[judge] or record.prompt_id in self._erased_prompts:
                self.num_erased += 1
                self._erased_ids.add(record.id)
            elif record.supersedes is None or record.supersedes in self._erased_ids:
                yield self._without_erased(record)
            else:
                # Whether the older one is by somebody erased is known when all are read: it may come later.
                self._waiting.append(record)

    def _without_erased(self, record: Judgment) -> Judgment:
        return record.model_copy(update={"supersedes": None}) if record.supersedes in self._erased_ids else record

    def _insert(self, table: Table, chunk: list[RecordT], columns: Mapping[str, Mapping[str, Any]]) -> list[RecordT]:
        """Insert the records that are not there yet and return them."""
        query = select(table.c.id, table.c.body).where(table.c.id.in_(list(columns)))
        bodies: dict[str, str] = {row.id: row.body for row in self._connection.execute(query)}
        new: list[RecordT] = []
        rows: list[dict[str, Any]] = []
        for record in chunk:
            body = record.model_dump_json(exclude_none=True)
            found = bodies.setdefault(record.id, "")
            if found == body:
                self.num_already_there += 1
            elif found:
                raise DataError(
                    f"{table.name.removesuffix('s')} {record.id!r} is in the store with other "
                    "content; nothing was added: give it another id, or (a judgment) let it "
                    "supersede the old one"
                )
            else:
                bodies[record.id] = body
                rows.append({"id": record.id, "body": body, **columns[record.id]})
                new.append(record)
        if rows:
            self._connection.execute(table.insert(), rows)
        return new

    def _learn_prompts(self, ids: set[str]) -> None:
        if wanted := ids - self._known_prompts:
            query = select(tables.prompts.c.id).where(tables.prompts.c.id.in_(sorted(wanted)))
            self._known_prompts.update(self._connection.execute(query).scalars())

    def _check_references(self, chunk: list[Judgment]) -> None:
        self._learn_prompts({record.prompt_id for record in chunk})
        known = self._prompt_of_completion
        wanted = {name for record in chunk for name in record.shown if name not in known}
        table = tables.completions
        for names in chunks(sorted(wanted)):
            query = select(table.c.id, table.c.prompt_id).where(table.c.id.in_(names))
            known.update({row.id: row.prompt_id for row in self._connection.execute(query)})
        for record in chunk:
            if record.prompt_id not in self._known_prompts:
                raise _unknown("judgment", record.id, "prompt", record.prompt_id)
            for name in record.shown:
                prompt_id = known.get(name)
                if prompt_id is None:
                    raise _unknown("judgment", record.id, "completion", name)
                if prompt_id != record.prompt_id:
                    raise DataError(
                        f"judgment {record.id!r} is about prompt {record.prompt_id!r}, but shows "
                        f"completion {name!r} of prompt {prompt_id!r}; nothing was added"
                    )

    def _check_superseded(self) -> None:
        """Refuse judgments that replace one which is not there; called when all are added."""
        newer = tables.judgments
        older = newer.alias("older")
        query = (
            select(newer.c.id, newer.c.supersedes)
            .outerjoin(older, newer.c.supersedes == older.c.id)
            .where(newer.c.supersedes.is_not(None), older.c.id.is_(None))
            .limit(1)
        )
        for row in self._connection.execute(query):
            raise _unknown("judgment", row.id, "judgment", row.supersedes)


@contextlib.contextmanager
def many_records() -> Generator[None]:
    """Look for cyclic garbage rarely while records are made by the million.

    They form no cycles, and looking through all that is alive takes a third of an import's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _unknown(kind: str, record_id: str, wanted_kind: str, wanted_id: str) -> DataError:
    return DataError(
        f"{kind} {record_id!r} refers to {wanted_kind} {wanted_id!r}, which is neither in the "
        "store nor added with it; nothing was added: add it in the same import"
    )


def judgment_columns(record: Judgment, now: str) -> dict[str, Any]:
    """Return the columns by which a judgment is found and counted."""
    return {
        "prompt_id": record.prompt_id,
        "judge_id": record.judge.id,
        "judge_kind": record.judge.kind,
        "answer_type": record.answer.type,
        "supersedes": record.supersedes,
        "created_at": now,
    }


def utc_now(seconds: float | None = None) -> str:
    """Return the time in UTC, ISO 8601, to the second: now, or that of so many seconds since 1970."""
    when = time.time() if seconds is None else seconds
    return datetime.datetime.fromtimestamp(when, datetime.UTC).isoformat(timespec="seconds")


def chunks(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    """Yield items in lists short enough for one statement."""
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def bodies_of(connection: Connection, table: Table, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield id and JSON of the records of one kind that have these ids, in no order."""
    for chunk in chunks(names):
        for row in connection.execute(select(table.c.id, table.c.body).where(table.c.id.in_(chunk))):
            yield row.id, row.body

"""Counts of people that a datasheet may publish, and who is behind the judgments in numbers."""

import json
from collections import Counter
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, select

from harken.feedback.privacy.keys import DemographicsKey
from harken.feedback.privacy.suppress import GroupTable, group_table, may_replace
from harken.feedback.questions import group_of
from harken.feedback.store.adding import utc_now
from harken.feedback.store.people import demographics_by_attribute
from harken.feedback.store.people_tables import consent_texts, consents, demographics, releases
from harken.feedback.store.tables import judgments
from harken.records import Record

NOT_SAID = "did not say"


class GroupOpinion(Record):
    """What a group of judges has in common."""

    value: str
    agreement: int | None
    """Percent of votes of two judges of the group on the same pair that agree; None where no two met."""
    shift: float | None = None
    """By how much they weigh differences more (above 0) or less than the other judges, with its interval."""
    low: float | None = None
    high: float | None = None
    q: float | None = None
    """p of a shift of 0, adjusted for the number of groups."""


class GroupAgreement(Record):
    """How far groups of judges agree within and between them, rounded."""

    within: int | None
    between: int | None
    """Percent."""
    p: float | None
    """Of the permutation test that groups make no difference."""
    groups: tuple[GroupOpinion, ...]


class Release(Record):
    """A table about one attribute, how far its groups agree, and since when both have been public."""

    table: GroupTable
    agreement: GroupAgreement | None = None
    released_at: str


class _Published(Record):
    """What the store remembers of a release."""

    counts: dict[str, int]
    agreement: GroupAgreement | None = None


Measure = Callable[[Mapping[str, str]], GroupAgreement | None]
"""Judge -> group, for groups that may be told, to how far they agree."""


class PublishedConsent(Record):
    """A version of a consent text."""

    purpose: str
    version: str
    locale: str
    sha256: str


def release_demographics(
    connection: Connection, k: int, key: DemographicsKey | None, measure: Measure
) -> list[Release]:
    """Return what may be said of the people who judged, one table an attribute, with how far their groups agree.

    Both stay as they were last released until enough people came, went or changed (`may_replace`), so that two
    datasheets never differ by single people. Call it in a write transaction.

    Args:
        connection: of a write transaction.
        k: how many people are enough.
        key: finds people's attributes; without it nothing is said of agreement.
        measure: says how far groups agree; called with judges of groups whose counts are published, and no others.
    """
    query = select(judgments.c.judge_id).where(judgments.c.judge_kind == "person").distinct()
    people = list(connection.execute(query).scalars())
    found: list[Release] = []
    known = {row.attribute: row for row in connection.execute(select(releases))}
    current = demographics_by_attribute(connection)
    for attribute in sorted(set(current) | set(known)):
        counts = dict(current.get(attribute, {}))
        counts[NOT_SAID] = max(0, len(people) - sum(counts.values()))
        row = known.get(attribute)
        told = None if row is None else _published(row.counts)
        if told is None or may_replace(told.counts, counts, k):
            now = utc_now()
            table = group_table(attribute, counts, k)
            groups = {} if key is None else _groups(connection, table, people, key)
            told = _Published(counts=counts, agreement=measure(groups) if groups else None)
            values = {"counts": told.model_dump_json(), "created_at": now}
            if row is None:
                connection.execute(releases.insert().values(attribute=attribute, **values))
            else:
                connection.execute(releases.update().where(releases.c.attribute == attribute).values(**values))
        else:
            now = known[attribute].created_at
        table = group_table(attribute, told.counts, k)
        found.append(Release(table=table, agreement=told.agreement, released_at=now))
    return found


def _published(text: str) -> _Published:
    value = json.loads(text)
    # Until version 1 of the datasheet had agreement, the counts stood alone.
    return _Published.model_validate(value if isinstance(value.get("counts"), dict) else {"counts": value})


def _groups(connection: Connection, table: GroupTable, people: list[str], key: DemographicsKey) -> dict[str, str]:
    """Return judge -> value, of values whose counts are published."""
    shown = {count.value for count in table.counts} - {NOT_SAID}
    query = select(demographics.c.person_key, demographics.c.value).where(demographics.c.attribute == table.attribute)
    value_of = {row.person_key: group_of(row.value) for row in connection.execute(query)}
    said = {person: value_of.get(key.person_key(person)) for person in people}
    return {person: value for person, value in said.items() if value is not None and value in shown}


def consent_versions(connection: Connection, k: int) -> tuple[list[PublishedConsent], GroupTable | None]:
    """Return the texts, and how many people agreed last to which version of that on participation."""
    texts = [
        PublishedConsent(purpose=row.purpose, version=row.version, locale=row.locale, sha256=row.sha256)
        for row in connection.execute(select(consent_texts).order_by(consent_texts.c.seq))
    ]
    latest: dict[str, str] = {}
    query = select(consents).where(consents.c.purpose == "participation").order_by(consents.c.seq)
    for row in connection.execute(query):
        latest[row.person_id] = "withdrawn" if row.withdrawn_at else row.version
    counts = Counter(latest.values())
    return texts, group_table("consent version", counts, k) if counts else None

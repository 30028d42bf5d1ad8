"""Counts of people that a datasheet may publish, and who is behind the judgments in numbers."""

import json
from collections import Counter

from sqlalchemy import Connection, func, select

from harken.feedback.privacy.suppress import GroupTable, group_table, may_replace, to_json
from harken.feedback.store.adding import utc_now
from harken.feedback.store.people import demographics_by_attribute
from harken.feedback.store.people_tables import consent_texts, consents, releases
from harken.feedback.store.tables import judgments
from harken.records import Record

NOT_SAID = "did not say"


class Release(Record):
    """A table about one attribute, and since when it has been public."""

    table: GroupTable
    released_at: str


class PublishedConsent(Record):
    """A version of a consent text."""

    purpose: str
    version: str
    locale: str
    sha256: str


def release_demographics(connection: Connection, k: int) -> list[Release]:
    """Return what may be said of the people who judged, one table an attribute.

    A table stays as it was last released until enough people came, went or changed (`may_replace`), so that two
    datasheets never differ by single people. Call it in a write transaction.
    """
    people = select(func.count(func.distinct(judgments.c.judge_id))).where(judgments.c.judge_kind == "person")
    num_people = connection.execute(people).scalar_one()
    found: list[Release] = []
    known = {row.attribute: row for row in connection.execute(select(releases))}
    current = demographics_by_attribute(connection)
    for attribute in sorted(set(current) | set(known)):
        counts = dict(current.get(attribute, {}))
        counts[NOT_SAID] = max(0, num_people - sum(counts.values()))
        row = known.get(attribute)
        if row is None or may_replace(json.loads(row.counts), counts, k):
            now = utc_now()
            values = {"counts": to_json(counts), "created_at": now}
            if row is None:
                connection.execute(releases.insert().values(attribute=attribute, **values))
            else:
                connection.execute(releases.update().where(releases.c.attribute == attribute).values(**values))
        else:
            counts, now = json.loads(row.counts), row.created_at
        found.append(Release(table=group_table(attribute, counts, k), released_at=now))
    return found


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

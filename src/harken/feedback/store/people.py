"""What people decide about their data: consent, withdrawal, demographics, and a copy of all of it.

Every function works in the caller's transaction (`store.database.writing` or `reading`).
"""

import hashlib
from typing import Any, Literal

from sqlalchemy import Connection, Table, bindparam, delete, select, update

from harken.errors import DataError, UsageError
from harken.feedback.privacy.keys import DemographicsKey
from harken.feedback.questions import group_of
from harken.feedback.store.adding import utc_now
from harken.feedback.store.audit import record, reference
from harken.feedback.store.conversations import conversation_prompts
from harken.feedback.store.people_tables import (
    consent_texts,
    consents,
    demographics,
    person_columns,
    withdrawals,
)
from harken.feedback.store.tables import judgments, prompts
from harken.records import Record

Purpose = Literal["participation", "demographics"]
# Written once: every request for a task asks them.
_TEXTS = (
    select(consent_texts).where(consent_texts.c.purpose == bindparam("_purpose")).order_by(consent_texts.c.seq.desc())
)
_AGREED = select(consents.c.seq).where(
    consents.c.person_id == bindparam("_person"),
    consents.c.purpose == bindparam("_purpose"),
    consents.c.version == bindparam("_version"),
    consents.c.withdrawn_at.is_(None),
)


class ConsentText(Record):
    """A text that people are asked to agree to."""

    purpose: Purpose
    version: str
    locale: str
    text: str
    sha256: str


class Attributes(Record):
    """What one person said of themselves."""

    person: str
    values: dict[str, str]


def publish_consent_text(
    connection: Connection, purpose: Purpose, version: str, text: str, *, actor: str, locale: str = "en"
) -> ConsentText:
    """Add a version of a consent text; people are asked again when the newest version is another.

    Raises:
        DataError: the version is there with another text.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    same = (consent_texts.c.purpose == purpose) & (consent_texts.c.version == version)
    query = select(consent_texts.c.sha256).where(same, consent_texts.c.locale == locale)
    found = connection.execute(query).scalar_one_or_none()
    if found not in (None, sha256):
        raise DataError(f"consent text {purpose} {version} ({locale}) is there with other words; give it a new version")
    published = ConsentText(purpose=purpose, version=version, locale=locale, text=text, sha256=sha256)
    if found is None:
        connection.execute(consent_texts.insert().values(**published.model_dump(), created_at=utc_now()))
        record(connection, "consent_text", actor, {"purpose": purpose, "version": version, "locale": locale})
    return published


def current_consent_text(connection: Connection, purpose: Purpose, locale: str = "en") -> ConsentText | None:
    """Return the newest text in a language, else the newest in any."""
    rows = connection.execute(_TEXTS, {"_purpose": purpose}).mappings().all()
    if not rows:
        return None
    # A new version in one language asks everyone again: others see it in that language until it is translated.
    newest = [row for row in rows if row["version"] == rows[0]["version"]]
    row = next((row for row in newest if row["locale"] == locale), newest[0])
    return ConsentText.model_validate({name: row[name] for name in ConsentText.model_fields})


def give_consent(connection: Connection, person: str, text: ConsentText) -> None:
    """Note that a person agreed to a text: which version, its hash, when, in which language."""
    row = text.model_dump(exclude={"text"})
    connection.execute(consents.insert().values(person_id=person, given_at=utc_now(), **row))
    if text.purpose == "participation":
        connection.execute(delete(withdrawals).where(withdrawals.c.person_id == person))


def needs_consent(connection: Connection, person: str, purpose: Purpose) -> bool:
    """Return True when a person has not agreed to the newest version of a text that was published."""
    current = current_consent_text(connection, purpose)
    if current is None:
        return False
    values = {"_person": person, "_purpose": purpose, "_version": current.version}
    return connection.execute(_AGREED, values).first() is None


def withdraw(connection: Connection, person: str, purpose: Purpose, key: DemographicsKey | None, *, actor: str) -> int:
    """Take back consent and return how many judgments or attributes it concerns.

    Participation: the judgments stay in the store and out of every export from now on. Demographics: the attributes are
    deleted, the judgments stay as they are.

    Raises:
        DataError: there are demographics, and no key to find the person's.
    """
    query = update(consents).where(
        consents.c.person_id == person, consents.c.purpose == purpose, consents.c.withdrawn_at.is_(None)
    )
    connection.execute(query.values(withdrawn_at=utc_now()))
    if purpose == "demographics":
        count = forget_demographics(connection, person, key)
    else:
        if connection.execute(select(withdrawals).where(withdrawals.c.person_id == person)).first() is None:
            connection.execute(withdrawals.insert().values(person_id=person, created_at=utc_now()))
        count = len(connection.execute(select(judgments.c.seq).where(judgments.c.judge_id == person)).all())
    facts = {"person": reference(connection, person), "purpose": purpose, "count": count}
    record(connection, "withdraw", actor, facts)
    return count


def set_demographics(connection: Connection, person: str, values: dict[str, str], key: DemographicsKey) -> None:
    """Replace what a person said of themselves; an empty value is none.

    Raises:
        UsageError: a consent text for demographics is published and the person has not agreed to it.
    """
    if needs_consent(connection, person, "demographics"):
        raise UsageError("demographics are kept only with consent: record it first, or leave them out")
    forget_demographics(connection, person, key)
    now, name = utc_now(), key.person_key(person)
    rows = [
        {"person_key": name, "attribute": attribute, "value": value.strip(), "created_at": now}
        for attribute, value in values.items()
        if value.strip()
    ]
    if rows:
        connection.execute(demographics.insert(), rows)


def forget_demographics(connection: Connection, person: str, key: DemographicsKey | None) -> int:
    """Delete what a person said of themselves and return how many attributes that were."""
    if connection.execute(select(demographics.c.attribute).limit(1)).first() is None:
        return 0
    if key is None:
        raise DataError("the store holds demographics, and the key that finds a person's is missing; restore its file")
    return connection.execute(delete(demographics).where(demographics.c.person_key == key.person_key(person))).rowcount


def demographics_of(connection: Connection, person: str, key: DemographicsKey) -> dict[str, str]:
    """Return what a person said of themselves, by attribute."""
    query = select(demographics).where(demographics.c.person_key == key.person_key(person))
    return {row.attribute: row.value for row in connection.execute(query)}


def demographics_by_attribute(connection: Connection) -> dict[str, dict[str, int]]:
    """Return attribute -> value -> number of people. For the demographics role: publish it through `suppress` only."""
    counts: dict[str, dict[str, int]] = {}
    for row in connection.execute(select(demographics.c.attribute, demographics.c.value)):
        values = counts.setdefault(row.attribute, {})
        group = group_of(row.value)
        values[group] = values.get(group, 0) + 1
    return counts


def own_data(
    connection: Connection, person: str, key: DemographicsKey | None, *, actor: str
) -> dict[str, list[dict[str, Any]]]:
    """Return everything the store holds about one person, by table, and nothing about anyone else.

    Raises:
        UsageError: it holds nothing.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    owned = [(table, column == person) for table, column in [*person_columns(), (judgments, judgments.c.judge_id)]]
    for table, is_theirs in [*owned, (prompts, prompts.c.id.in_(conversation_prompts(person)))]:
        rows = connection.execute(select(table).where(is_theirs)).mappings()
        if listed := [_own(table, dict(row), person) for row in rows]:
            found.setdefault(table.name, []).extend(listed)
    if key is not None:
        query = select(demographics).where(demographics.c.person_key == key.person_key(person))
        if listed := [dict(row) for row in connection.execute(query).mappings()]:
            found[demographics.name] = listed
    if not found:
        raise UsageError(f"the store holds nothing about {person!r}; check the id")
    record(connection, "self_export", actor, {"person": reference(connection, person)})
    return found


def _own(table: Table, row: dict[str, Any], person: str) -> dict[str, Any]:
    """Return a row without what opens a door, and without the ids of others."""
    info = {column.name: column.info for column in table.columns}
    return {
        name: value
        for name, value in row.items()
        if not info[name].get("secret") and (value == person or not info[name].get("person"))
    }

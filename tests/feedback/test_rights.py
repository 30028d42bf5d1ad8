"""People's rights: consent, withdrawal, own copy, retention; pseudonyms and the audit log."""

import datetime
import json
import sqlite3
import stat
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, String, Table, select

from harken.errors import DataError, UsageError
from harken.feedback.exchange import read_harken
from harken.feedback.privacy.keys import (
    demographics_key_path,
    keys_path,
    read_demographics_key,
    read_keys,
    rotate_keys,
)
from harken.feedback.store import FeedbackStore, audit, people
from harken.feedback.store.people_tables import metadata
from harken.feedback.store.retention import delete_expired
from harken.feedback.store.tables import expires
from harken.records import (
    Judgment,
    Timing,
)
from tests.feedback.two_people import ANN, BOB, ME, erase, exported, give_demographics, make_sharing

# Pseudonyms (checks 11 and 12)


def test_two_scopes_share_no_name_and_no_exact_time(store: FeedbackStore, tmp_path: Path) -> None:
    for scope in ("partner", "public"):
        store.export(tmp_path / scope, make_sharing(store, scope))
    one, two = exported(tmp_path / "partner"), exported(tmp_path / "public")
    assert len(one) == len(two) == 4  # the critique is free text
    assert not {found.judge.id for found in one} & {found.judge.id for found in two}
    assert not {found.id for found in one} & {found.id for found in two}
    assert all(found.timing == Timing(submitted_at="2026-03-01", active_s=42.0) for found in one)
    # In order of the new names, so that rows cannot be laid side by side.
    assert [found.id for found in one] == sorted(found.id for found in one)
    # Within a scope one person stays one person.
    assert len({found.judge.id for found in one}) == 2


def test_a_new_key_gives_new_names_and_the_old_one_still_knows_the_old(store: FeedbackStore) -> None:
    path = keys_path(store.secrets)
    old = read_keys(path, create=True)
    new = rotate_keys(path)
    assert read_keys(path, create=False) == new
    assert new.pseudonym(ANN, "s") != old.pseudonym(ANN, "s")
    assert new.pseudonym(ANN, "s", "key-1") == old.pseudonym(ANN, "s")
    with pytest.raises(DataError, match="there is no key 'key-9'"):
        new.pseudonym(ANN, "s", "key-9")


def test_another_project_gives_other_names(tmp_path: Path) -> None:
    one, two = (read_keys(tmp_path / f"{name}.json", create=True) for name in "ab")
    assert one.pseudonym(ANN, "s") != two.pseudonym(ANN, "s")
    assert one.tombstone(ANN) != two.tombstone(ANN)


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.db.keys.json"
    read_keys(path, create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(DataError, match="others may read"):
        read_keys(path, create=False)
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(DataError, match="not a file of keys"):
        read_keys(path, create=False)
    with pytest.raises(DataError, match="missing; restore"):
        read_keys(tmp_path / "none.json", create=False)


def test_free_text_leaves_only_when_asked_for_and_scanned(store: FeedbackStore, tmp_path: Path) -> None:
    manifest = store.export(tmp_path / "plain", make_sharing(store, "s"))
    # Two rationales and one critique.
    assert manifest.info["sharing"]["num_texts_left_out"] == 3
    assert manifest.info["sharing"]["free_text"] == "left out"
    assert all(not found.rationale for found in exported(tmp_path / "plain"))
    manifest = store.export(tmp_path / "texts", make_sharing(store, "s", include_text=True))
    assert {found.rationale for found in exported(tmp_path / "texts")} == {"", "I met [EMAIL]", "clear"}
    # The prompt's address and the rationale's.
    assert manifest.info["sharing"]["personal_data"] == {"num_texts": 2, "found": {"email": 2}}
    assert b"carl@example.com" not in (tmp_path / "texts" / "prompts.jsonl").read_bytes()


def test_a_shared_export_can_be_imported(store: FeedbackStore, tmp_path: Path) -> None:
    store.export(tmp_path / "out", make_sharing(store, "s"))
    imported = read_harken(tmp_path / "out")
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'g.db'}") as other:
        added = other.add(imported.prompts, imported.completions, imported.judgments, source=imported.source)
    assert added.judgments == 4


# Consent and withdrawal (checks 2, 4, 5)


def test_a_new_version_of_the_text_asks_again(store: FeedbackStore) -> None:
    with store.database.writing() as connection:
        assert not people.needs_consent(connection, ANN, "participation")
        first = people.publish_consent_text(connection, "participation", "1", "You may stop.", actor=ME)
        assert people.needs_consent(connection, ANN, "participation")
        people.give_consent(connection, ANN, first)
        assert not people.needs_consent(connection, ANN, "participation")
        people.publish_consent_text(connection, "participation", "2", "You may stop at any time.", actor=ME)
        assert people.needs_consent(connection, ANN, "participation")
        german = people.publish_consent_text(connection, "participation", "2", "Jederzeit.", actor=ME, locale="de")
        assert people.current_consent_text(connection, "participation", "de") == german
        with pytest.raises(DataError, match="with other words; give it a new version"):
            people.publish_consent_text(connection, "participation", "2", "Other.", actor=ME)


def test_who_withdraws_is_in_no_export_from_then_on(store: FeedbackStore, tmp_path: Path) -> None:
    with store.database.writing() as connection:
        assert people.withdraw(connection, ANN, "participation", None, actor=ME) == 3
    store.export(tmp_path / "own")
    store.export(tmp_path / "shared", make_sharing(store, "s"))
    assert [(found.id, found.supersedes) for found in exported(tmp_path / "own")] == [("j4", None), ("j5", None)]
    assert len(exported(tmp_path / "shared")) == 2
    assert {found.judge.id for found in store.judgments()} == {BOB}
    assert store.status().num_judgments == 5


def test_demographics_go_alone_and_judgments_stay(store: FeedbackStore, tmp_path: Path) -> None:
    give_demographics(store)
    key = read_demographics_key(demographics_key_path(store.secrets), create=False)
    with store.database.writing() as connection:
        counts = people.demographics_by_attribute(connection)
        assert counts == {"age": {"40-49": 1, "30-39": 1}, "gender": {"woman": 1}}
        assert people.withdraw(connection, ANN, "demographics", key, actor=ME) == 2
        assert people.demographics_by_attribute(connection) == {"age": {"30-39": 1}}
    store.export(tmp_path / "out")
    assert len(exported(tmp_path / "out")) == 5


def test_demographics_are_kept_apart_from_people(store: FeedbackStore, tmp_path: Path) -> None:
    give_demographics(store)
    rows = list(sqlite3.connect(store.path).execute("SELECT * FROM demographics"))
    assert not any(ANN in str(row) or BOB in str(row) for row in rows)
    # Ordinary exports hold no attribute.
    store.export(tmp_path / "out")
    assert b"40-49" not in b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())
    # Without the key of that role nobody finds a person's.
    with (
        store.database.writing() as connection,
        pytest.raises(DataError, match="the key that finds a person's is missing"),
    ):
        people.withdraw(connection, ANN, "demographics", None, actor=ME)


def test_demographics_need_their_own_consent(store: FeedbackStore) -> None:
    key = read_demographics_key(demographics_key_path(store.secrets), create=True)
    with store.database.writing() as connection:
        text = people.publish_consent_text(connection, "demographics", "1", "Why we ask.", actor=ME)
        with pytest.raises(UsageError, match="only with consent"):
            people.set_demographics(connection, ANN, {"age": "40-49"}, key)
        people.give_consent(connection, ANN, text)
        people.set_demographics(connection, ANN, {"age": "40-49"}, key)


# Own copy (check 8)


def test_self_export_holds_all_of_ones_own_and_nothing_of_others(store: FeedbackStore) -> None:
    give_demographics(store)
    key = read_demographics_key(demographics_key_path(store.secrets), create=False)
    with store.database.writing() as connection:
        text = people.publish_consent_text(connection, "participation", "1", "Yes?", actor=ME)
        people.give_consent(connection, ANN, text)
        people.give_consent(connection, BOB, text)
        found = people.own_data(connection, ANN, key, actor=ME)
        with pytest.raises(UsageError, match="holds nothing about 'eve'"):
            people.own_data(connection, "eve", key, actor=ME)
    assert {name: len(rows) for name, rows in found.items()} == {"judgments": 3, "consents": 1, "demographics": 2}
    assert BOB not in json.dumps(found)


# Retention (check 15), no addresses (check 16)


def test_what_is_old_goes_and_what_is_young_stays(store: FeedbackStore) -> None:
    own = MetaData()
    drafts = Table("drafts", own, Column("id", String), Column("made", String), info=expires("drafts", "made"))
    now = datetime.datetime(2026, 3, 31, 12, tzinfo=datetime.UTC)
    with store.database.writing() as connection:
        own.create_all(connection)
        rows = [
            {"id": "old", "made": "2026-03-01T11:59:59+00:00"},
            {"id": "young", "made": "2026-03-01T12:00:00+00:00"},
        ]
        connection.execute(drafts.insert(), rows)
        assert delete_expired(connection, {"drafts": 30}, now, actor=ME, tables=own) == {"drafts": 1}
        assert connection.execute(select(drafts.c.id)).scalars().all() == ["young"]
        later = now + datetime.timedelta(seconds=1)
        assert delete_expired(connection, {"drafts": 30}, later, actor=ME, tables=own) == {"drafts": 1}
        with pytest.raises(UsageError, match="nothing of the kind 'rafts' expires; there are: drafts"):
            delete_expired(connection, {"rafts": 30}, now, actor=ME, tables=own)


def test_no_table_has_a_place_for_addresses_or_browsers() -> None:
    names = {f"{table.name}.{column.name}" for table in metadata.sorted_tables for column in table.columns}
    forbidden = ("ip", "ip_address", "user_agent", "browser", "client")
    assert not [name for name in names if name.split(".")[1] in forbidden]
    assert not set(Judgment.model_fields) & set(forbidden)


# Audit log (check 17)


@pytest.mark.parametrize("change", ["facts = '{}'", "actor = 'x'", "created_at = '2020'", "action = 'login'"])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_changing_any_entry_breaks_the_chain(store: FeedbackStore, change: str, place: int, tmp_path: Path) -> None:
    store.export(tmp_path / "one")
    store.export(tmp_path / "two")
    with store.database.reading() as connection:
        assert audit.verify(connection).num_entries == 3
    raw = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(f"UPDATE audit SET {change} WHERE seq = {place}")
    raw.execute("DROP TRIGGER audit_refuse_update")
    raw.execute(f"UPDATE audit SET {change} WHERE seq = {place}")
    raw.commit()
    raw.close()
    with store.database.reading() as connection, pytest.raises(DataError, match=rf"entry {place} .* does not follow"):
        audit.verify(connection)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_removing_an_entry_is_found_out(store: FeedbackStore, place: int, tmp_path: Path) -> None:
    store.export(tmp_path / "one")
    store.export(tmp_path / "two")
    with store.database.reading() as connection:
        head = audit.verify(connection).head
    raw = sqlite3.connect(store.path)
    raw.execute("DROP TRIGGER audit_refuse_delete")
    raw.execute(f"DELETE FROM audit WHERE seq = {place}")
    raw.commit()
    raw.close()
    # The last entry can be cut off without a trace in the log itself; a head noted elsewhere tells.
    with (
        store.database.reading() as connection,
        pytest.raises(DataError, match=r"does not follow|no entry has the hash"),
    ):
        audit.verify(connection, head)


def test_the_log_says_what_was_done_and_holds_no_words_and_no_names(store: FeedbackStore, tmp_path: Path) -> None:
    give_demographics(store)
    store.export(tmp_path / "out", make_sharing(store, "s"))
    with store.database.writing() as connection:
        people.withdraw(connection, BOB, "participation", None, actor=ME)
    erase(store)
    with store.database.reading() as connection:
        entries = audit.entries(connection)
    assert [entry.action for entry in entries] == ["import", "export", "withdraw", "erase"]
    whole = json.dumps([entry.model_dump() for entry in entries])
    assert not [word for word in (ANN, BOB, "clear", "I met", "text a") if word in whole]


def test_the_log_refuses_what_has_no_place_in_it(store: FeedbackStore) -> None:
    with store.database.writing() as connection, pytest.raises(AssertionError, match="no place in the audit log"):
        audit.record(connection, "login", ME, {"password": "x"})

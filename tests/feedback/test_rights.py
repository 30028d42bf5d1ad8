"""People's rights: consent, withdrawal, own copy, erasure, retention; pseudonyms and the audit log."""

import datetime
import json
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, String, Table, select

from harken.artifacts import artifact_digest, read_manifest, verify, write_records
from harken.errors import DataError, UsageError
from harken.feedback.exchange import read_harken
from harken.feedback.privacy.detect import built_in
from harken.feedback.privacy.keys import (
    demographics_key_path,
    keys_path,
    read_demographics_key,
    read_keys,
    rotate_keys,
)
from harken.feedback.privacy.redact import Redactor
from harken.feedback.source import ImportSource
from harken.feedback.store import FeedbackStore, audit, people
from harken.feedback.store.erase import Erasing, Erasure, plan
from harken.feedback.store.people_tables import metadata
from harken.feedback.store.retention import delete_expired
from harken.feedback.store.sharing import Sharing
from harken.feedback.store.tables import expires
from harken.records import (
    Answer,
    Comparison,
    Completion,
    Critique,
    Demonstration,
    Judge,
    Judgment,
    Message,
    Prompt,
    Timing,
)

ANN, BOB = "ann.keller@example.org", "bob-1987654"
ME = "command line"
SOURCE = ImportSource("test", "f.jsonl", "0" * 64)


def _judgment(name: str, judge: str, answer: Answer, **fields: object) -> Judgment:
    timing = Timing(shown_at="2026-03-01T10:00:01Z", submitted_at="2026-03-01T10:00:43Z", active_s=41.7)
    return Judgment.model_validate(
        {
            "id": name,
            "judge": Judge(id=judge, kind="person"),
            "prompt_id": "q",
            "shown": ("a", "b"),
            "answer": answer,
            "timing": timing,
            **fields,
        }
    )


WIN = Comparison(outcome="win", winner="a")
JUDGMENTS = [
    _judgment("j1", ANN, WIN, rationale="I met ann.keller@example.org"),
    _judgment("j2", ANN, Comparison(outcome="tie"), supersedes="j1"),
    _judgment("j3", ANN, Critique(completion_id="a", text="as I, Ann, know")),
    _judgment("j4", BOB, WIN, rationale="clear"),
    # A reviewer mends Ann's answer.
    _judgment("j5", BOB, WIN, supersedes="j2"),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as opened:
        _fill(opened)
        yield opened


def _fill(store: FeedbackStore) -> None:
    prompt = Prompt(id="q", messages=(Message(role="user", content="Mail me: carl@example.com"),))
    texts = {name: Message(role="assistant", content=f"text {name}") for name in "ab"}
    completions = [Completion(id=name, prompt_id="q", message=text) for name, text in texts.items()]
    store.add([prompt], completions, JUDGMENTS, source=SOURCE)


def _sharing(store: FeedbackStore, scope: str, *, include_text: bool = False) -> Sharing:
    keys = read_keys(keys_path(store.secrets), create=True)
    return Sharing(scope, keys, Redactor(built_in()), include_text)


def _erasing(store: FeedbackStore, person: str = ANN, **fields: object) -> Erasing:
    keys = read_keys(keys_path(store.secrets), create=True)
    key = read_demographics_key(demographics_key_path(store.secrets), create=True)
    return Erasing(person, fields.get("policy", "delete"), keys, key, fields.get("folders", ()))  # pyright: ignore[reportArgumentType]


def _erase(store: FeedbackStore, person: str = ANN, **fields: object) -> Erasure:
    return store.erase(_erasing(store, person, **fields), actor=ME)


def _exported(folder: Path) -> list[Judgment]:
    return list(read_harken(folder).judgments)


# Pseudonyms (checks 11 and 12)


def test_two_scopes_share_no_name_and_no_exact_time(store: FeedbackStore, tmp_path: Path) -> None:
    for scope in ("partner", "public"):
        store.export(tmp_path / scope, _sharing(store, scope))
    one, two = _exported(tmp_path / "partner"), _exported(tmp_path / "public")
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
    manifest = store.export(tmp_path / "plain", _sharing(store, "s"))
    # Two rationales and one critique.
    assert manifest.info["sharing"]["num_texts_left_out"] == 3
    assert manifest.info["sharing"]["free_text"] == "left out"
    assert all(not found.rationale for found in _exported(tmp_path / "plain"))
    manifest = store.export(tmp_path / "texts", _sharing(store, "s", include_text=True))
    assert {found.rationale for found in _exported(tmp_path / "texts")} == {"", "I met [EMAIL]", "clear"}
    # The prompt's address and the rationale's.
    assert manifest.info["sharing"]["personal_data"] == {"num_texts": 2, "found": {"email": 2}}
    assert b"carl@example.com" not in (tmp_path / "texts" / "prompts.jsonl").read_bytes()


def test_a_shared_export_can_be_imported(store: FeedbackStore, tmp_path: Path) -> None:
    store.export(tmp_path / "out", _sharing(store, "s"))
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
    store.export(tmp_path / "shared", _sharing(store, "s"))
    assert [(found.id, found.supersedes) for found in _exported(tmp_path / "own")] == [("j4", None), ("j5", None)]
    assert len(_exported(tmp_path / "shared")) == 2
    assert {found.judge.id for found in store.judgments()} == {BOB}
    assert store.status().num_judgments == 5


def _give_demographics(store: FeedbackStore) -> None:
    key = read_demographics_key(demographics_key_path(store.secrets), create=True)
    with store.database.writing() as connection:
        people.set_demographics(connection, ANN, {"age": "40-49", "gender": "woman", "country": " "}, key)
        people.set_demographics(connection, BOB, {"age": "30-39"}, key)


def test_demographics_go_alone_and_judgments_stay(store: FeedbackStore, tmp_path: Path) -> None:
    _give_demographics(store)
    key = read_demographics_key(demographics_key_path(store.secrets), create=False)
    with store.database.writing() as connection:
        counts = people.demographics_by_attribute(connection)
        assert counts == {"age": {"40-49": 1, "30-39": 1}, "gender": {"woman": 1}}
        assert people.withdraw(connection, ANN, "demographics", key, actor=ME) == 2
        assert people.demographics_by_attribute(connection) == {"age": {"30-39": 1}}
    store.export(tmp_path / "out")
    assert len(_exported(tmp_path / "out")) == 5


def test_demographics_are_kept_apart_from_people(store: FeedbackStore, tmp_path: Path) -> None:
    _give_demographics(store)
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
    _give_demographics(store)
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


# Erasure (checks 13 and 14)


def _bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_dry_run_says_everything_and_changes_nothing(store: FeedbackStore, tmp_path: Path) -> None:
    _give_demographics(store)
    store.export(tmp_path / "out")
    before = (tmp_path / "out" / "judgments.jsonl").read_bytes()
    with store.database.reading() as connection:
        found = plan(connection, _erasing(store))
    assert found.rows == {"judgments": 3, "demographics": 2}
    assert [(Path(one.folder).name, one.num_judgments) for one in found.exports] == [("out", 3)]
    assert not found.done
    assert (tmp_path / "out" / "judgments.jsonl").read_bytes() == before
    assert store.status().num_judgments == 5


@pytest.mark.parametrize("policy", ["delete", "anonymize"])
def test_no_byte_of_an_erased_person_is_left(store: FeedbackStore, tmp_path: Path, policy: str) -> None:
    _give_demographics(store)
    with store.database.writing() as connection:
        text = people.publish_consent_text(connection, "participation", "1", "Yes?", actor=ME)
        people.give_consent(connection, ANN, text)
        people.own_data(connection, ANN, None, actor=ME)
    store.export(tmp_path / "own")
    store.export(tmp_path / "shared", _sharing(store, "s", include_text=True))
    pseudonym = read_keys(keys_path(store.secrets), create=False).pseudonym(ANN, "s")
    assert ANN.encode() in _bytes(tmp_path)
    assert pseudonym.encode() in _bytes(tmp_path / "shared")
    found = _erase(store, policy=policy)
    assert found.done
    assert found.is_scanned
    assert found.still_found_in == ()
    # Everything below: the database with its journals, both exports.
    everything = _bytes(tmp_path)
    assert ANN.encode() not in everything
    assert b"as I, Ann" not in everything
    assert pseudonym.encode() not in everything
    assert b"40-49" not in everything
    # Without Ann: her judgments are gone, or two of three are nobody's and without words.
    assert store.status().num_judgments == (2 if policy == "delete" else 4)
    for name in ("own", "shared"):
        verify(tmp_path / name)
    with store.database.reading() as connection:
        audit.verify(connection)


def test_judgments_of_nobody_cannot_be_linked(store: FeedbackStore) -> None:
    _erase(store, policy="anonymize")
    found = list(store.judgments(include_superseded=True))
    nobody = [one for one in found if one.judge.id != BOB]
    assert [one.answer for one in nobody] == [WIN, Comparison(outcome="tie")]
    assert len({one.judge.id for one in nobody}) == 2
    assert all(one.timing == Timing() and not one.rationale for one in nobody)
    # Who supersedes whom is as before.
    assert nobody[1].supersedes == nobody[0].id
    assert found[-1].supersedes == nobody[1].id
    assert [one.id for one in store.judgments()] == ["j4", "j5"]


def test_after_erasing_judgments_are_append_only_again(store: FeedbackStore) -> None:
    _erase(store)
    connection = sqlite3.connect(store.path)
    for statement in ("DELETE FROM judgments", "UPDATE shown SET completion_id = 'b'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("shared", [False, True])
def test_an_old_export_cannot_bring_a_person_back(store: FeedbackStore, tmp_path: Path, shared: bool) -> None:
    sharing = _sharing(store, "s") if shared else None
    store.export(tmp_path / "out", sharing)
    copy = tmp_path / "copy"
    (tmp_path / "out").rename(copy)  # where no erasure finds it
    rotate_keys(keys_path(store.secrets))
    found = _erase(store)
    assert found.missing_exports == (str(tmp_path / "out"),)
    old = read_harken(copy)
    judgments = [one for one in old.judgments if shared or one.judge.id == ANN]
    added = store.add(old.prompts if not shared else [], [], judgments, source=old.source)
    # Ann's two (three with the critique) are refused; Bob's come in under his pseudonym.
    assert (added.judgments, added.erased) == ((2, 2) if shared else (0, 3))
    assert ANN not in {one.judge.id for one in store.judgments(include_superseded=True)}


@pytest.mark.parametrize("turned", [False, True])
def test_an_erased_judgment_may_come_after_the_one_that_supersedes_it(store: FeedbackStore, turned: bool) -> None:
    _erase(store)
    added = store.add([], [], JUDGMENTS[::-1] if turned else JUDGMENTS, source=SOURCE)
    # Bob's are there already, the one that mended Ann's without its link.
    assert (added.judgments, added.erased, added.already_there) == (0, 3, 2)


def test_without_the_keys_nothing_is_added_to_a_store_with_erased_people(store: FeedbackStore) -> None:
    _erase(store)
    keys_path(store.secrets).unlink()
    with pytest.raises(DataError, match="keys of this store are missing"):
        _fill(store)


def test_everything_made_of_a_persons_judgments_is_named(store: FeedbackStore, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    store.export(runs / "export")
    demo = Demonstration(
        id="d",
        prompt=Prompt(id="q", messages=(Message(role="user", content="x"),)),
        completion=Message(role="assistant", content="y"),
    )

    def make(name: str, kind: str, **parents: Path) -> Path:
        path = runs / f"{name}.jsonl"
        write_records(path, [demo], kind=kind, parents={key: artifact_digest(one) for key, one in parents.items()})
        return path

    pairs = make("pairs", "pairs", judgments=runs / "export")
    reward = make("reward", "reward", pairs=pairs)
    make("policy", "ppo", reward=reward)
    make("other", "sft")
    found = _erase(store, folders=[runs])
    assert [(one.kind, Path(one.path).name) for one in found.made] == [
        ("pairs", "pairs.jsonl"),
        ("reward", "reward.jsonl"),
        ("ppo", "policy.jsonl"),
    ]
    # The export was written anew; what was made of the old one is still found from it.
    manifest = read_manifest(runs / "export")
    assert manifest is not None
    assert len(manifest.info["replaces"]) == 1
    again = _erase(store, BOB, folders=[runs])
    assert [one.kind for one in again.made] == ["pairs", "reward", "ppo"]


def test_nobody_of_that_name_is_said(store: FeedbackStore) -> None:
    with pytest.raises(UsageError, match="neither the store nor an export holds anything of 'eve'"):
        _erase(store, "eve")
    _erase(store)
    assert _erase(store).done  # a second time: the file may not have been written anew the first time


def test_agreement_and_counts_are_those_of_a_store_that_never_had_the_person(
    store: FeedbackStore, tmp_path: Path
) -> None:
    _erase(store)
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'g.db'}") as other:
        prompts, completions = list(store.prompts()), list(store.completions())
        others = [one for one in JUDGMENTS if one.judge.id != ANN]
        others = [one.model_copy(update={"supersedes": None}) for one in others]
        other.add(prompts, completions, others, source=SOURCE)
        left = store.status().model_dump(exclude={"last_imports"})
        assert left == other.status().model_dump(exclude={"last_imports"})


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
    _give_demographics(store)
    store.export(tmp_path / "out", _sharing(store, "s"))
    with store.database.writing() as connection:
        people.withdraw(connection, BOB, "participation", None, actor=ME)
    _erase(store)
    with store.database.reading() as connection:
        entries = audit.entries(connection)
    assert [entry.action for entry in entries] == ["import", "export", "withdraw", "erase"]
    whole = json.dumps([entry.model_dump() for entry in entries])
    assert not [word for word in (ANN, BOB, "clear", "I met", "text a") if word in whole]


def test_the_log_refuses_what_has_no_place_in_it(store: FeedbackStore) -> None:
    with store.database.writing() as connection, pytest.raises(AssertionError, match="no place in the audit log"):
        audit.record(connection, "login", ME, {"password": "x"})

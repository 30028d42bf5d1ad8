"""Rights of people with an account in the web app, on both databases: erasure, own copy, retention, one audit log."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from harken.artifacts import read_records
from harken.errors import StorageError
from harken.feedback.privacy.detect import built_in
from harken.feedback.privacy.keys import keys_path, read_keys
from harken.feedback.privacy.redact import Redactor
from harken.feedback.store import FeedbackStore, Person, Project, audit, people
from harken.feedback.store.erase import Erasing, JudgmentPolicy, plan
from harken.feedback.store.people_tables import person_columns
from harken.feedback.store.retention import delete_expired, retention_kinds
from harken.feedback.store.sharing import Sharing
from harken.feedback.store.work_tables import leases, sessions
from harken.records import Flag, Judgment
from tests.feedback.working import Workshop, win

ME = audit.COMMAND_LINE


@pytest.fixture
def work(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    # Keys of a PostgreSQL store lie in the user's folder.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with FeedbackStore.open(store_url) as store:
        yield Workshop.over(store)


def _busy(work: Workshop) -> tuple[Person, Person, Project]:
    """Ann has answered one of two tasks, and begun the other; Bob has answered one."""
    ann, bob = work.people("Ann", "Bob")
    project = work.project(num_tasks=2)
    first = work.leases.claim(project.id, ann.id)
    work.leases.submit(first.id, ann.id, win(first, rationale="I, Ann", flags=(Flag(reason="other", note="by Ann"),)))
    second = work.leases.claim(project.id, ann.id)
    work.leases.keep(second.id, ann.id, '{"rationale": "half a thought"}')
    work.accounts.log_in(ann)
    work.accounts.invite("annotator", ann)
    work.projects.set_guideline(project.id, "Be kind.", ann)
    return ann, bob, project


def _request(work: Workshop, person: Person, policy: JudgmentPolicy) -> Erasing:
    keys = read_keys(keys_path(work.store.secrets), create=True)
    return Erasing(person.id, policy, keys, None)


@pytest.mark.parametrize("policy", ["delete", "anonymize"])
def test_an_account_and_its_work_are_erased_and_tasks_go_to_others(work: Workshop, policy: JudgmentPolicy) -> None:
    ann, bob, project = _busy(work)
    request = _request(work, ann, policy)
    with work.store.database.reading() as connection:
        rows = plan(connection, request).rows
    assert rows == {
        "judgments": 1,
        "people": 1,
        "sessions": 1,
        "leases": 2,
        "invitations": 2,
        "guidelines": 1,
        "person_references": 1,
    }
    found = work.store.erase(request, actor=ME)
    assert found.done
    assert found.still_found_in == ()
    with work.store.database.reading() as connection:
        for table, column in person_columns():
            assert connection.execute(select(column).select_from(table).where(column == ann.id)).all() == []
        audit.verify(connection)
    assert [one.name for one in work.accounts.everyone()] == ["Bob", "Olga"]
    kept = list(work.store.judgments())
    assert len(kept) == (policy == "anonymize")
    for one in kept:
        assert one.assignment is not None
        assert (one.flags, one.rationale, one.assignment.lease_id) == (None, "", one.id)
    progress = work.projects.progress(project.id)
    assert (progress.num_done, progress.num_leased) == (len(kept), 0)
    for _ in range(2 - len(kept)):
        lease = work.leases.claim(project.id, bob.id)
        work.leases.submit(lease.id, bob.id, win(lease))
    progress = work.projects.progress(project.id)
    assert (progress.num_done, progress.num_surplus) == (2, 0)
    # The guideline stays, nobody's.
    assert work.projects.get(project.id).guideline_text == "Be kind."


def test_judgments_and_the_audit_log_are_append_only_after_erasing(work: Workshop) -> None:
    ann, bob, project = _busy(work)
    work.store.erase(_request(work, ann, "delete"), actor=ME)
    lease = work.leases.claim(project.id, bob.id)
    work.leases.submit(lease.id, bob.id, win(lease))
    statements = ["UPDATE judgments SET body = '{}'", "DELETE FROM shown", "UPDATE audit SET facts = '{}'"]
    for statement in [*statements, "DELETE FROM audit"]:
        with pytest.raises(StorageError, match="append-only"), work.store.database.writing() as connection:
            connection.execute(text(statement))


def test_ones_own_copy_opens_no_door_and_names_nobody_else(work: Workshop) -> None:
    ann, bob, _ = _busy(work)
    work.accounts.join(work.accounts.invite("annotator", ann), "Cid", "correct horse")
    with work.store.database.writing() as connection:
        found = people.own_data(connection, ann.id, None, actor=ME)
    whole = json.dumps(found)
    assert "argon2" not in whole
    assert "token_hash" not in whole
    others = [one.id for one in work.accounts.everyone() if one.id != ann.id]
    assert bob.id in others
    assert not [name for name in others if name in whole]
    assert found["people"][0]["name"] == "Ann"
    assert {len(found[name]) for name in ("leases", "judgments")} == {1, 2}
    assert "half a thought" in whole


def test_old_drafts_and_sessions_go_and_answers_stay(work: Workshop) -> None:
    _busy(work)
    assert set(retention_kinds()) == {"counters", "deliveries", "drafts", "invitations", "sessions", "tokens"}
    now = datetime.datetime.now(datetime.UTC)
    days = {"drafts": 30.0, "sessions": 30.0}
    for age, expected in ((29, {"drafts": 0, "sessions": 0}), (31, {"drafts": 1, "sessions": 1})):
        with work.store.database.writing() as connection:
            later = now + datetime.timedelta(days=age)
            assert delete_expired(connection, days, later, actor=ME) == expected
    with work.store.database.reading() as connection:
        assert connection.execute(select(leases.c.draft)).scalars().all() == [None, None]
        assert connection.execute(select(sessions)).all() == []
    assert work.store.status().num_judgments == 1


def test_two_shared_exports_have_no_lease_and_no_note_in_common(work: Workshop, tmp_path: Path) -> None:
    _busy(work)
    keys = read_keys(keys_path(work.store.secrets), create=True)
    named: list[set[str]] = []
    for scope in ("partner", "public"):
        work.store.export(tmp_path / scope, Sharing(scope, keys, Redactor(built_in())))
        (found,) = read_records(tmp_path / scope / "judgments.jsonl", Judgment)
        assert found.flags == (Flag(reason="other"),)
        assert found.assignment is not None
        named.append({found.id, found.judge.id, found.assignment.lease_id})
    assert not named[0] & named[1]


def test_what_is_done_in_the_app_stands_in_the_audit_log(work: Workshop) -> None:
    ann, _, _ = _busy(work)
    with work.store.database.reading() as connection:
        audit.verify(connection)
        entries = audit.entries(connection)
    actions = [one.action for one in entries]
    assert actions[0] == "join"
    assert {"invite", "join", "login", "project", "import", "guideline"} == set(actions)
    whole = json.dumps([one.model_dump() for one in entries])
    assert not [word for word in (ann.id, "Ann", "Be kind") if word in whole]

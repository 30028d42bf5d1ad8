"""Backups: whole, of one moment, on either database, refused where they are not what they should be."""

import gzip
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from harken.errors import DataError, UsageError
from harken.feedback.privacy.keys import keys_path, read_keys
from harken.feedback.store import FeedbackStore, NoTask, audit
from harken.feedback.store.backup import BackupSummary, read_backup, restore_backup, write_backup
from harken.feedback.store.people_tables import metadata
from harken.feedback.store.tables import store_info
from tests.cli.calling import call
from tests.feedback.databases import fresh_database
from tests.feedback.working import Workshop, win


@pytest.fixture
def work(store_url: str) -> Iterator[Workshop]:
    with FeedbackStore.open(store_url) as store:
        yield Workshop.over(store)


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a second store that is not there yet, on either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'second.db'}"
    return fresh_database(request.getfixturevalue("postgres"))


def _fill(work: Workshop, num_answers: int = 3) -> str:
    """Answers, one of them replaced, and a lease with a draft; returns the project."""
    ann, bob = work.people("Ann", "Bob")
    project = work.project(num_tasks=4, overlap=2)
    for _ in range(num_answers):
        lease = work.leases.claim(project.id, ann.id)
        first = work.leases.submit(lease.id, ann.id, win(lease, rationale="schön \u2028 \U0001f600"))
        work.leases.submit(lease.id, ann.id, win(lease, 1, replaces=first.id))
    work.leases.keep(work.leases.claim(project.id, bob.id).id, bob.id, '{"rationale": "half"}')
    return project.id


def _rows(store: FeedbackStore, but: tuple[str, ...] = ()) -> dict[str, list[tuple[object, ...]]]:
    with store.database.reading() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
            if table is not store_info and table.name not in but
        }


def test_a_restored_store_is_the_store_whatever_the_database(work: Workshop, other_url: str, tmp_path: Path) -> None:
    project = _fill(work)
    before = _rows(work.store)
    summary = write_backup(work.store.database, tmp_path / "b.gz")
    assert summary.rows == {name: len(rows) for name, rows in before.items()}
    assert summary.rows["judgments"] == 6
    with FeedbackStore.open(other_url) as second:
        assert restore_backup(tmp_path / "b.gz", second.database) == summary
        assert _rows(second, ("audit",)) == {name: rows for name, rows in before.items() if name != "audit"}
        with second.database.reading() as connection:
            assert audit.verify(connection, summary.audit_head).num_entries == summary.audit_entries + 1
            assert audit.entries(connection)[-1].action == "restore"
        # Work goes on there, with numbers behind those of the backup.
        again = Workshop.over(second)
        (bob,) = [one for one in again.accounts.everyone() if one.name == "Bob"]
        lease = again.leases.claim(project, bob.id)
        assert lease.draft == '{"rationale": "half"}'
        again.leases.submit(lease.id, bob.id, win(lease))
        assert again.projects.progress(project).num_done == 4


def test_a_backup_under_load_is_the_store_at_one_moment(work: Workshop, tmp_path: Path) -> None:
    people = work.people("Ann", "Bob", "Eve")
    project = work.project(num_tasks=60, overlap=3)
    is_over = threading.Event()

    def work_off(person_id: str) -> None:
        try:
            while not is_over.is_set():
                lease = work.leases.claim(project.id, person_id)
                work.leases.submit(lease.id, person_id, win(lease))
        except NoTask:
            return  # all of it is done

    threads = [threading.Thread(target=work_off, args=(person.id,)) for person in people]
    for thread in threads:
        thread.start()
    summaries: list[BackupSummary] = []
    try:
        for number in range(3):
            summaries.append(write_backup(work.store.database, tmp_path / f"{number}.gz"))
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert summaries[0].rows["judgments"] < summaries[-1].rows["judgments"]
    for number, summary in enumerate(summaries):
        with FeedbackStore.open(f"sqlite:///{tmp_path / f'{number}.db'}") as second:
            restore_backup(tmp_path / f"{number}.gz", second.database)
            progress = Workshop.over(second).projects.progress(project.id)
            # A claim or an answer is in it as a whole or not at all.
            assert progress.num_done == progress.num_judgments == summary.rows["judgments"]
            assert progress.num_done + progress.num_leased == summary.rows["leases"]


def test_nothing_is_replaced_and_a_filled_store_is_refused(work: Workshop, tmp_path: Path) -> None:
    _fill(work)
    path = tmp_path / "b.gz"
    write_backup(work.store.database, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_bytes()
    with pytest.raises(UsageError, match="replaces nothing"):
        write_backup(work.store.database, path)
    assert path.read_bytes() == kept
    before = _rows(work.store)
    with pytest.raises(UsageError, match="this store holds"):
        restore_backup(path, work.store.database)
    assert _rows(work.store) == before


def test_a_changed_backup_restores_nothing(work: Workshop, tmp_path: Path) -> None:
    _fill(work)
    path = tmp_path / "b.gz"
    write_backup(work.store.database, path)
    packed, lines = path.read_bytes(), gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    answered = next(number for number, line in enumerate(lines) if b'"outcome":"win"' in line.replace(b"\\", b""))
    changed = {
        "expected rows=": gzip.compress(b"".join(lines[:answered] + lines[answered + 1 :])),
        "table judgments: found": gzip.compress(
            b"".join(
                [
                    *lines[:answered],
                    lines[answered].replace(b"Ann", b"Bob").replace(b"sch", b"Sch"),
                    *lines[answered + 1 :],
                ]
            )
        ),
        "ends too early": gzip.compress(b"".join(lines[:-1])),
        "not a whole gzip file": packed[: len(packed) // 2],
        "newer Harken": gzip.compress(b"".join([lines[0].replace(b'"revision":"', b'"revision":"9'), *lines[1:]])),
        "not a backup of a store": gzip.compress(b'{"chosen": "a"}\n'),
    }
    for number, (problem, content) in enumerate(changed.items()):
        bad = tmp_path / f"bad{number}.gz"
        bad.write_bytes(content)
        with (
            FeedbackStore.open(f"sqlite:///{tmp_path / f'{number}.db'}") as second,
            pytest.raises(DataError, match=problem),
        ):
            restore_backup(bad, second.database)
        with FeedbackStore.open(f"sqlite:///{tmp_path / f'{number}.db'}", create=False) as second:
            assert second.status().num_prompts == 0


def test_a_store_with_a_changed_audit_log_is_not_backed_up(tmp_path: Path) -> None:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        _fill(Workshop.over(store))
        with store.database.writing() as connection:
            connection.exec_driver_sql("DROP TRIGGER audit_refuse_update")
            connection.exec_driver_sql("UPDATE audit SET actor = 'me' WHERE seq = 1")
        with pytest.raises(DataError, match="does not follow"):
            write_backup(store.database, tmp_path / "b.gz")
    assert not list(tmp_path.glob("*b.gz*"))


def test_the_commands(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    with FeedbackStore.open(url) as store:
        _fill(Workshop.over(store))
        read_keys(keys_path(store.secrets), create=True)
    done = call("collect", "backup", "--store", url, "--out", tmp_path / "b.gz")
    assert done.code == 0, done.err
    assert f"keep {keys_path(tmp_path / 'f.db')} with it" in done.err
    assert read_backup(tmp_path / "b.gz").sha256 in done.out
    again = f"sqlite:///{tmp_path / 'g.db'}"
    done = call("collect", "restore", "--store", again, tmp_path / "b.gz", "--json")
    assert done.code == 0, done.err
    assert '"judgments": 6' in done.out
    assert call("collect", "restore", "--store", again, tmp_path / "b.gz").code == 2
    assert call("collect", "verify-audit", "--store", again).code == 0
    assert call("collect", "restore", "--store", again, tmp_path / "none.gz").problem.count("cannot be read") == 1

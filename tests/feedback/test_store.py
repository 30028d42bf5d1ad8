"""The feedback store: idempotent, append-only, checked references, plain errors."""

import json
import multiprocessing
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from harken.artifacts import artifact_digest, verify
from harken.errors import DataError, StorageError
from harken.feedback.exchange import read_harken
from harken.feedback.source import Imported, ImportSource
from harken.feedback.store import AddedCounts, FeedbackStore
from harken.records import Completion, Judge, Judgment, Message, Prompt, RatedAxis, Rating

SOURCE = ImportSource("test", "more.jsonl", "1" * 64)
JSONL = ("prompts.jsonl", "completions.jsonl", "judgments.jsonl")


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore.open(_url(tmp_path / "f.db")) as opened:
        yield opened


def _add(store: FeedbackStore, imported: Imported) -> AddedCounts:
    return store.add(imported.prompts, imported.completions, imported.judgments, source=imported.source)


def _rating(name: str, shown: tuple[str, ...], **fields: str) -> Judgment:
    return Judgment(
        id=name,
        judge=Judge(id="p", kind=fields.get("kind", "person")),  # pyright: ignore[reportArgumentType]
        prompt_id=fields.get("prompt_id", "q"),
        shown=shown,
        answer=Rating(axes={"sentiment": RatedAxis(value=0, low=-4, high=4)}),
        supersedes=fields.get("supersedes"),
    )


def test_what_was_added_comes_back_in_order(store: FeedbackStore, small: Imported) -> None:
    assert _add(store, small) == AddedCounts(1, 2, 3, 0)
    assert list(store.prompts()) == list(small.prompts)
    assert list(store.completions()) == list(small.completions)
    assert list(store.judgments(include_superseded=True)) == list(small.judgments)


def test_superseded_judgments_are_kept_but_left_out(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)
    assert [judgment.id for judgment in store.judgments()] == ["j2", "j3"]


def test_a_store_outlives_its_process(tmp_path: Path, small: Imported) -> None:
    with FeedbackStore.open(_url(tmp_path / "f.db")) as store:
        _add(store, small)
    with FeedbackStore.open(_url(tmp_path / "f.db"), create=False) as store:
        assert [prompt.id for prompt in store.prompts()] == ["q"]


def test_adding_twice_is_adding_once(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)
    assert _add(store, small) == AddedCounts(0, 0, 0, 6)
    assert len(list(store.judgments(include_superseded=True))) == 3


def test_a_record_twice_in_one_import_counts_once(store: FeedbackStore, small: Imported) -> None:
    prompts = list(small.prompts) * 2
    assert store.add(prompts, [], [], source=SOURCE) == AddedCounts(1, 0, 0, 1)


def test_the_same_id_with_other_content_is_refused_and_nothing_added(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)
    changed = Prompt(id="q", messages=(Message(role="user", content="Another prompt"),))
    new = Prompt(id="new", messages=(Message(role="user", content="New"),))
    with pytest.raises(DataError, match="prompt 'q' is in the store with other content"):
        store.add([new, changed], [], [], source=SOURCE)
    with pytest.raises(DataError, match="judgment 'j1' is in the store with other content"):
        store.add([], [], [_rating("j1", ("b",))], source=SOURCE)
    assert [prompt.id for prompt in store.prompts()] == ["q"]
    assert store.status().num_judgments == 3
    assert len(store.status().last_imports) == 1


def test_references_to_what_is_not_there_are_refused(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)
    orphan = Completion(id="c", prompt_id="z", message=Message(role="assistant", content="x"))
    with pytest.raises(DataError, match="completion 'c' refers to prompt 'z'"):
        store.add([], [orphan], [], source=SOURCE)
    for judgment, problem in (
        (_rating("j", ("z",)), "judgment 'j' refers to completion 'z'"),
        (_rating("j", ("a",), prompt_id="z"), "judgment 'j' refers to prompt 'z'"),
        (_rating("j", ("a",), supersedes="z"), "judgment 'j' refers to judgment 'z'"),
    ):
        with pytest.raises(DataError, match=problem):
            store.add([], [], [judgment], source=SOURCE)
    assert store.status().num_judgments == 3


def test_a_judgment_about_another_prompt_than_its_completion_is_refused(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)
    other = Prompt(id="q2", messages=(Message(role="user", content="Tweet:\n"),))
    judgment = _rating("j", ("a",), prompt_id="q2")
    with pytest.raises(DataError, match="about prompt 'q2', but shows completion 'a' of prompt"):
        store.add([other], [], [judgment], source=SOURCE)


def test_the_newer_judgment_may_come_first(store: FeedbackStore, small: Imported) -> None:
    judgments = list(small.judgments)[::-1]
    store.add(small.prompts, small.completions, judgments, source=SOURCE)
    assert [judgment.id for judgment in store.judgments()] == ["j3", "j2"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE judgments SET body = '{}' WHERE id = 'j1'",
        "DELETE FROM judgments WHERE id = 'j1'",
        "DELETE FROM judgments",
        "INSERT OR REPLACE INTO judgments "
        "SELECT seq, id, prompt_id, judge_id, judge_kind, answer_type, supersedes, created_at, "
        "'{}' FROM judgments WHERE id = 'j1'",
        "UPDATE shown SET completion_id = 'b'",
        "DELETE FROM shown",
        "INSERT OR REPLACE INTO shown VALUES ('j1', 0, 'b')",
    ],
)
def test_raw_sql_cannot_change_a_judgment(store: FeedbackStore, small: Imported, statement: str) -> None:
    _add(store, small)
    connection = sqlite3.connect(store.path)
    try:
        before = (
            list(connection.execute("SELECT * FROM judgments")),
            list(connection.execute("SELECT * FROM shown")),
        )
        with pytest.raises(sqlite3.IntegrityError, match="judgments are append-only"):
            connection.execute(statement)
        connection.rollback()
        after = (
            list(connection.execute("SELECT * FROM judgments")),
            list(connection.execute("SELECT * FROM shown")),
        )
    finally:
        connection.close()
    assert after == before


def test_status_counts(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)
    store.add([], [], [_rating("m1", ("a",), kind="model")], source=SOURCE)
    status = store.status()
    assert (status.num_prompts, status.num_completions, status.num_judgments) == (1, 2, 4)
    # j1 is superseded; its judge, person-j1, is still a judge: person-j1, -j2, -j3 and p.
    assert (status.num_superseded, status.num_judges) == (1, 4)
    assert status.judgments_by_answer == {"rating": 4}
    assert status.judgments_by_judge == {"model": 1, "person": 3}
    # a: j3 and m1; b: j2.
    assert (status.per_completion_min, status.per_completion_max) == (1, 2)
    assert status.per_completion_mean == 1.5
    assert [entry.name for entry in status.last_imports] == ["more.jsonl", "small.jsonl"]
    assert status.last_imports[1].notes == ("made by hand",)
    assert status.last_imports[1].num_judgments == 3


def test_status_of_an_empty_store_is_zero(store: FeedbackStore) -> None:
    status = store.status()
    assert (status.num_judgments, status.per_completion_mean, status.last_imports) == (0, 0.0, ())


def test_a_completion_without_judgment_makes_the_minimum_zero(store: FeedbackStore, small: Imported) -> None:
    store.add(small.prompts, small.completions, list(small.judgments)[:1], source=SOURCE)
    assert (store.status().per_completion_min, store.status().per_completion_mean) == (0, 0.5)


def test_export_names_its_imports_as_parents(store: FeedbackStore, small: Imported, tmp_path: Path) -> None:
    _add(store, small)
    manifest = store.export(tmp_path / "out")
    assert manifest.parents == {"small.jsonl": "0" * 64}
    assert manifest.info["counts"] == {"prompts": 1, "completions": 2, "judgments": 3}
    assert manifest.info["imports"][0]["notes"] == ["made by hand"]
    assert sorted(manifest.files) == sorted(JSONL)
    verify(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*JSONL, "manifest.json"])


def test_two_files_of_one_name_are_two_parents(store: FeedbackStore, tmp_path: Path) -> None:
    for digit in "12":
        store.add([], [], [], source=ImportSource("test", "f.jsonl", digit * 64))
    parents = store.export(tmp_path / "out").parents
    assert parents == {"f.jsonl": "1" * 64, f"f.jsonl@{'2' * 12}": "2" * 64}


def test_the_same_store_exports_the_same_bytes(store: FeedbackStore, small: Imported, tmp_path: Path) -> None:
    _add(store, small)
    first = store.export(tmp_path / "one")
    _add(store, small)
    assert store.export(tmp_path / "two") == first
    for name in (*JSONL, "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_export_import_export_gives_the_same_records(store: FeedbackStore, small: Imported, tmp_path: Path) -> None:
    _add(store, small)
    store.export(tmp_path / "one")
    imported = read_harken(tmp_path / "one")
    assert (len(imported.prompts), len(imported.completions), len(imported.judgments)) == (1, 2, 3)
    assert imported.source.sha256 == artifact_digest(tmp_path / "one")
    with FeedbackStore.open(_url(tmp_path / "second.db")) as second:
        assert _add(second, imported) == AddedCounts(1, 2, 3, 0)
        second.export(tmp_path / "two")
    for name in JSONL:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_changed_export_is_refused(store: FeedbackStore, small: Imported, tmp_path: Path) -> None:
    _add(store, small)
    store.export(tmp_path / "out")
    path = tmp_path / "out" / "judgments.jsonl"
    path.write_bytes(path.read_bytes().replace(b"3.0", b"4.0"))
    with pytest.raises(DataError, match=r"judgments\.jsonl: sha256 is .* changed after"):
        read_harken(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert "could not be checked" in read_harken(tmp_path / "out").notes[0]


def test_a_bad_export_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        read_harken(tmp_path / "none")
    with pytest.raises(DataError, match=r"prompts\.jsonl: cannot be read"):
        read_harken(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"id": "q"}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: not a Prompt: messages"):
        read_harken(tmp_path)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("feedback.db", "not a database URL; expected sqlite:///PATH"),
        ("mysql://me:secret@host/db", r"'mysql://me:\*\*\*@host/db': only SQLite and PostgreSQL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_bad_url_is_a_data_error(url: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        FeedbackStore.open(url)


def test_paths_that_hold_no_store_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder .*nowhere does not exist"):
        FeedbackStore.open(_url(tmp_path / "nowhere" / "f.db"))
    with pytest.raises(DataError, match="a folder; expected"):
        FeedbackStore.open(_url(tmp_path))
    with pytest.raises(DataError, match="there is no store"):
        FeedbackStore.open(_url(tmp_path / "f.db"), create=False)
    assert not (tmp_path / "f.db").exists()
    text = tmp_path / "text.db"
    text.write_text("just some text " * 100)
    with pytest.raises(DataError, match="not a Harken store: not an SQLite file"):
        FeedbackStore.open(_url(text))
    assert text.read_text() == "just some text " * 100


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title)")
    connection.close()
    with pytest.raises(DataError, match=r"not a Harken store: .*other tables \(songs\)"):
        FeedbackStore.open(_url(path))


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    FeedbackStore.open(_url(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE harken_store SET value = '99'")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="store of version 99, this Harken reads version 1"):
        FeedbackStore.open(_url(path))


def test_a_lock_held_too_long_is_a_storage_error(
    store: FeedbackStore, small: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harken.feedback.store.connect._BUSY_TIMEOUT_MS", 50)
    other = sqlite3.connect(store.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        store.close()
        with pytest.raises(StorageError, match="another process is writing"):
            _add(store, small)
    finally:
        other.close()
    assert _add(store, small).judgments == 3


def test_a_full_disk_is_a_storage_error_and_nothing_is_added(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)

    def many() -> Iterator[Completion]:
        for index in range(2000):
            text = Message(role="assistant", content="x" * 1000)
            yield Completion(id=f"big-{index}", prompt_id="q", message=text)

    # SQLite reports a full disk in the same way when its own page limit is reached.
    with store.database.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        raw.cursor().execute(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(StorageError, match="disk is full"):
        store.add([], many(), [], source=SOURCE)
    assert store.status().num_completions == 2


def test_a_body_changed_by_hand_is_named(store: FeedbackStore, small: Imported) -> None:
    _add(store, small)
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE completions SET body = '{\"id\": \"a\"}' WHERE id = 'a'")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="completions 'a': not a Completion: prompt_id"):
        list(store.completions())


def _open_and_add(path: str, number: int) -> None:
    with FeedbackStore.open(f"sqlite:///{path}") as store:
        for index in range(10):
            prompt = Prompt(id=f"q{number}-{index}", messages=(Message(role="user", content="x"),))
            store.add([prompt], [], [], source=SOURCE)


def test_processes_that_make_and_fill_one_store_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "f.db"
    workers = [context.Process(target=_open_and_add, args=(str(path), n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with FeedbackStore.open(_url(path), create=False) as store:
        assert store.status().num_prompts == 30


def test_bodies_are_plain_json(store: FeedbackStore, small: Imported, tmp_path: Path) -> None:
    _add(store, small)
    store.export(tmp_path / "out")
    lines = (tmp_path / "out" / "judgments.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["answer"]["axes"]["sentiment"]["value"] == 1.0

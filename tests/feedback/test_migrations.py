"""Migrations: to the newest form and back on both databases, and stores that were made before there were any."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, event, inspect, text

from harken.errors import DataError, StorageError
from harken.feedback.source import Imported
from harken.feedback.store import FeedbackStore
from harken.feedback.store.migrate import downgrade, upgrade
from harken.feedback.store.tables import protection
from harken.feedback.store.work_tables import metadata
from tests.feedback.databases import fresh_database

RECORDS = ("harken_store", "prompts", "completions", "judgments", "shown", "imports")


def _differences(store: FeedbackStore) -> list[object]:
    with store.database.engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_migrations_make_what_the_tables_say(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store:
        assert _differences(store) == []


def test_down_and_up_again_keeps_the_records(store_url: str, small: Imported) -> None:
    with FeedbackStore.open(store_url) as store:
        store.add(small.prompts, small.completions, small.judgments, source=small.source)
        with store.database.writing(alone=True) as connection:
            downgrade(connection, "0001")
        with store.database.engine.connect() as connection:
            assert set(inspect(connection).get_table_names()) == {*RECORDS, "alembic_version"}
    with FeedbackStore.open(store_url, create=False) as store:
        assert _differences(store) == []
        assert [judgment.id for judgment in store.judgments(include_superseded=True)] == ["j1", "j2", "j3"]


def test_all_the_way_down_leaves_nothing_and_a_store_can_be_made_again(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store:
        with store.database.writing(alone=True) as connection:
            downgrade(connection, "base")
        with store.database.engine.connect() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
        with store.database.writing(alone=True) as connection:
            upgrade(connection, "test")
        assert _differences(store) == []
        with store.database.writing(alone=True) as connection:
            downgrade(connection, "base")
    with FeedbackStore.open(store_url) as store:
        assert store.status().num_prompts == 0


def test_a_store_from_before_migrations_is_brought_up(tmp_path: Path, small: Imported) -> None:
    path = tmp_path / "old.db"
    # As the first version made it: straight from the tables, with the triggers, without Alembic.
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON").close())
    with engine.begin() as connection:
        metadata.create_all(connection, tables=[metadata.tables[name] for name in RECORDS])
        for statement in protection("sqlite"):
            connection.execute(text(statement))
        connection.execute(text("INSERT INTO harken_store VALUES ('version', '1')"))
        connection.execute(text("INSERT INTO prompts (id, body) VALUES ('q', :body)"), {"body": _body(small)})
    engine.dispose()
    with FeedbackStore.open(f"sqlite:///{path}", create=False) as store:
        assert [prompt.id for prompt in store.prompts()] == ["q"]
        assert _differences(store) == []
        assert store.add(small.prompts, small.completions, small.judgments, source=small.source).already_there == 1


def _body(small: Imported) -> str:
    (prompt,) = small.prompts
    return prompt.model_dump_json(exclude_none=True)


def test_a_store_of_a_newer_harken_is_refused(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store, store.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DataError, match=r"a newer Harken has changed this store \(to step 9999\)"):
        FeedbackStore.open(store_url)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE judgments SET body = '{}'", "DELETE FROM judgments", "DELETE FROM shown", "TRUNCATE judgments CASCADE"],
)
def test_postgresql_refuses_to_change_a_judgment(postgres: str, statement: str, small: Imported) -> None:

    with FeedbackStore.open(fresh_database(postgres)) as store:
        store.add(small.prompts, small.completions, small.judgments, source=small.source)
        with (
            pytest.raises(StorageError, match="judgments are append-only"),
            store.database.writing() as connection,
        ):
            connection.execute(text(statement))
        assert store.status().num_judgments == 3


def test_a_database_that_does_not_answer_is_said_without_the_password() -> None:

    with pytest.raises(StorageError, match=r"postgresql://me:\*\*\*@127.0.0.1:1/none"):
        FeedbackStore.open("postgresql://me:secret@127.0.0.1:1/none")

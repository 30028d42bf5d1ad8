"""What models put into a store and read from it: pairs to judge, judgments, completions drawn so far."""

import json
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from harken.config.project import ProjectConfig
from harken.feedback.store.adding import Adding, bodies_of, chunks
from harken.feedback.store.connect import Database
from harken.feedback.store.tables import completions, judgments, prompts, shown
from harken.feedback.store.work_tables import projects, tasks
from harken.records import Completion, Judgment, Prompt


class AskedPair(NamedTuple):
    """Two completions of one prompt that people are, or were, asked to compare."""

    prompt: Prompt
    one: Completion
    other: Completion
    """Ids in order: `one.id < other.id`."""


def asked_pairs(database: Database, project_id: str | None) -> list[AskedPair]:
    """Return the pairs of comparison tasks, each once, in order of ids.

    Args:
        database: of the store.
        project_id: whose tasks; None takes all projects, and the pairs of comparisons that came by import too.
    """
    with database.reading() as connection:
        found = set(_of_tasks(connection, project_id))
        if project_id is None:
            found |= set(_of_judgments(connection))
        names = sorted({name for pair in found for name in pair})
        texts = {name: Completion.model_validate_json(body) for name, body in bodies_of(connection, completions, names)}
        of_prompts = bodies_of(connection, prompts, {one.prompt_id for one in texts.values()})
        asked = {name: Prompt.model_validate_json(body) for name, body in of_prompts}
    return [AskedPair(asked[texts[one].prompt_id], texts[one], texts[other]) for one, other in sorted(found)]


def _of_tasks(connection: Connection, project_id: str | None) -> Iterator[tuple[str, str]]:
    query = select(tasks.c.completion_ids, projects.c.config).join(projects, projects.c.id == tasks.c.project_id)
    for row in connection.execute(query if project_id is None else query.where(tasks.c.project_id == project_id)):
        if ProjectConfig.model_validate_json(row.config).task.kind == "comparison":
            one, other = sorted(json.loads(row.completion_ids))
            yield one, other


def _of_judgments(connection: Connection) -> Iterator[tuple[str, str]]:
    query = (
        select(shown.c.judgment_id, shown.c.completion_id)
        .join(judgments, judgments.c.id == shown.c.judgment_id)
        .where(judgments.c.answer_type == "comparison")
        .order_by(shown.c.judgment_id)
    )
    pair: list[str] = []
    before = ""
    for row in connection.execute(query):
        if row.judgment_id != before:
            if len(pair) == 2:
                yield min(pair), max(pair)
            pair, before = [], row.judgment_id
        pair.append(row.completion_id)
    if len(pair) == 2:
        yield min(pair), max(pair)


def known_judgments(database: Database, names: Sequence[str]) -> set[str]:
    """Return which of these ids are judgments in the store."""
    with database.reading() as connection:
        return {
            name
            for chunk in chunks(names)
            for name in connection.execute(select(judgments.c.id).where(judgments.c.id.in_(chunk))).scalars()
        }


def drawn_completions(database: Database, asked: Collection[Prompt], model: str) -> list[Completion]:
    """Return the completions of these prompts that a model has in the store."""
    found: list[Completion] = []
    with database.reading() as connection:
        for chunk in chunks(prompt.id for prompt in asked):
            query = select(completions.c.body).where(completions.c.prompt_id.in_(chunk))
            records = (Completion.model_validate_json(body) for body in connection.execute(query).scalars())
            found += [record for record in records if record.model == model]
    return found


def add_made(
    database: Database,
    *,
    asked: Collection[Prompt] = (),
    drawn: Collection[Completion] = (),
    judged: Collection[Judgment] = (),
) -> None:
    """Add what a model made, in one transaction; what is there already with the same content stays as it is.

    Raises:
        DataError: an id is there with other content, or a record refers to one that is nowhere.
    """
    with database.writing(alone=True) as connection:
        adding = Adding(connection)
        adding.prompts(asked)
        adding.completions(drawn)
        adding.judgments(judged)
        adding.finish()

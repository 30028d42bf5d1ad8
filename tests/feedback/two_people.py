"""A store with judgments by two people, and what is done with it."""

from pathlib import Path

from harken.feedback.exchange import read_harken
from harken.feedback.privacy.detect import built_in
from harken.feedback.privacy.keys import (
    demographics_key_path,
    keys_path,
    read_demographics_key,
    read_keys,
)
from harken.feedback.privacy.redact import Redactor
from harken.feedback.source import ImportSource
from harken.feedback.store import FeedbackStore, people
from harken.feedback.store.erase import Erasing, Erasure
from harken.feedback.store.sharing import Sharing
from harken.records import (
    Answer,
    Comparison,
    Completion,
    Critique,
    Judge,
    Judgment,
    Message,
    Prompt,
    Timing,
)

ANN, BOB = "ann.keller@example.org", "bob-1987654"
ME = "command line"
SOURCE = ImportSource("test", "f.jsonl", "0" * 64)


def judged(name: str, judge: str, answer: Answer, **fields: object) -> Judgment:
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
    judged("j1", ANN, WIN, rationale="I met ann.keller@example.org"),
    judged("j2", ANN, Comparison(outcome="tie"), supersedes="j1"),
    judged("j3", ANN, Critique(completion_id="a", text="as I, Ann, know")),
    judged("j4", BOB, WIN, rationale="clear"),
    # A reviewer mends Ann's answer.
    judged("j5", BOB, WIN, supersedes="j2"),
]


def fill(store: FeedbackStore) -> None:
    prompt = Prompt(id="q", messages=(Message(role="user", content="Mail me: carl@example.com"),))
    texts = {name: Message(role="assistant", content=f"text {name}") for name in "ab"}
    completions = [Completion(id=name, prompt_id="q", message=text) for name, text in texts.items()]
    store.add([prompt], completions, JUDGMENTS, source=SOURCE)


def make_sharing(store: FeedbackStore, scope: str, *, include_text: bool = False) -> Sharing:
    keys = read_keys(keys_path(store.secrets), create=True)
    return Sharing(scope, keys, Redactor(built_in()), include_text)


def make_erasing(store: FeedbackStore, person: str = ANN, **fields: object) -> Erasing:
    keys = read_keys(keys_path(store.secrets), create=True)
    key = read_demographics_key(demographics_key_path(store.secrets), create=True)
    return Erasing(person, fields.get("policy", "delete"), keys, key, fields.get("folders", ()))  # pyright: ignore[reportArgumentType]


def erase(store: FeedbackStore, person: str = ANN, **fields: object) -> Erasure:
    return store.erase(make_erasing(store, person, **fields), actor=ME)


def exported(folder: Path) -> list[Judgment]:
    return list(read_harken(folder).judgments)


def give_demographics(store: FeedbackStore) -> None:
    key = read_demographics_key(demographics_key_path(store.secrets), create=True)
    with store.database.writing() as connection:
        people.set_demographics(connection, ANN, {"age": "40-49", "gender": "woman", "country": " "}, key)
        people.set_demographics(connection, BOB, {"age": "30-39"}, key)

"""Erasure: nothing of a person is left, and nothing brings them back."""

import sqlite3
from pathlib import Path

import pytest

from harken.artifacts import artifact_digest, read_manifest, verify, write_records
from harken.errors import DataError, UsageError
from harken.feedback.exchange import read_harken
from harken.feedback.privacy.keys import (
    keys_path,
    read_keys,
    rotate_keys,
)
from harken.feedback.store import FeedbackStore, audit, people
from harken.feedback.store.erase import plan
from harken.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Timing,
)
from tests.feedback.two_people import (
    ANN,
    BOB,
    JUDGMENTS,
    ME,
    SOURCE,
    WIN,
    erase,
    fill,
    give_demographics,
    make_erasing,
    make_sharing,
)

# Erasure (checks 13 and 14)


def _bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_dry_run_says_everything_and_changes_nothing(store: FeedbackStore, tmp_path: Path) -> None:
    give_demographics(store)
    store.export(tmp_path / "out")
    before = (tmp_path / "out" / "judgments.jsonl").read_bytes()
    with store.database.reading() as connection:
        found = plan(connection, make_erasing(store))
    assert found.rows == {"judgments": 3, "demographics": 2}
    assert [(Path(one.folder).name, one.num_judgments) for one in found.exports] == [("out", 3)]
    assert not found.done
    assert (tmp_path / "out" / "judgments.jsonl").read_bytes() == before
    assert store.status().num_judgments == 5


@pytest.mark.parametrize("policy", ["delete", "anonymize"])
def test_no_byte_of_an_erased_person_is_left(store: FeedbackStore, tmp_path: Path, policy: str) -> None:
    give_demographics(store)
    with store.database.writing() as connection:
        text = people.publish_consent_text(connection, "participation", "1", "Yes?", actor=ME)
        people.give_consent(connection, ANN, text)
        people.own_data(connection, ANN, None, actor=ME)
    store.export(tmp_path / "own")
    store.export(tmp_path / "shared", make_sharing(store, "s", include_text=True))
    pseudonym = read_keys(keys_path(store.secrets), create=False).pseudonym(ANN, "s")
    assert ANN.encode() in _bytes(tmp_path)
    assert pseudonym.encode() in _bytes(tmp_path / "shared")
    found = erase(store, policy=policy)
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
    erase(store, policy="anonymize")
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
    erase(store)
    connection = sqlite3.connect(store.path)
    for statement in ("DELETE FROM judgments", "UPDATE shown SET completion_id = 'b'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("shared", [False, True])
def test_an_old_export_cannot_bring_a_person_back(store: FeedbackStore, tmp_path: Path, shared: bool) -> None:
    sharing = make_sharing(store, "s") if shared else None
    store.export(tmp_path / "out", sharing)
    copy = tmp_path / "copy"
    (tmp_path / "out").rename(copy)  # where no erasure finds it
    rotate_keys(keys_path(store.secrets))
    found = erase(store)
    assert found.missing_exports == (str(tmp_path / "out"),)
    old = read_harken(copy)
    judgments = [one for one in old.judgments if shared or one.judge.id == ANN]
    added = store.add(old.prompts if not shared else [], [], judgments, source=old.source)
    # Ann's two (three with the critique) are refused; Bob's come in under his pseudonym.
    assert (added.judgments, added.erased) == ((2, 2) if shared else (0, 3))
    assert ANN not in {one.judge.id for one in store.judgments(include_superseded=True)}


@pytest.mark.parametrize("turned", [False, True])
def test_an_erased_judgment_may_come_after_the_one_that_supersedes_it(store: FeedbackStore, turned: bool) -> None:
    erase(store)
    added = store.add([], [], JUDGMENTS[::-1] if turned else JUDGMENTS, source=SOURCE)
    # Bob's are there already, the one that mended Ann's without its link.
    assert (added.judgments, added.erased, added.already_there) == (0, 3, 2)


def test_without_the_keys_nothing_is_added_to_a_store_with_erased_people(store: FeedbackStore) -> None:
    erase(store)
    keys_path(store.secrets).unlink()
    with pytest.raises(DataError, match="keys of this store are missing"):
        fill(store)


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
    found = erase(store, folders=[runs])
    assert [(one.kind, Path(one.path).name) for one in found.made] == [
        ("pairs", "pairs.jsonl"),
        ("reward", "reward.jsonl"),
        ("ppo", "policy.jsonl"),
    ]
    # The export was written anew; what was made of the old one is still found from it.
    manifest = read_manifest(runs / "export")
    assert manifest is not None
    assert len(manifest.info["replaces"]) == 1
    again = erase(store, BOB, folders=[runs])
    assert [one.kind for one in again.made] == ["pairs", "reward", "ppo"]


def test_nobody_of_that_name_is_said(store: FeedbackStore) -> None:
    with pytest.raises(UsageError, match="neither the store nor an export holds anything of 'eve'"):
        erase(store, "eve")
    erase(store)
    assert erase(store).done  # a second time: the file may not have been written anew the first time


def test_agreement_and_counts_are_those_of_a_store_that_never_had_the_person(
    store: FeedbackStore, tmp_path: Path
) -> None:
    erase(store)
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'g.db'}") as other:
        prompts, completions = list(store.prompts()), list(store.completions())
        others = [one for one in JUDGMENTS if one.judge.id != ANN]
        others = [one.model_copy(update={"supersedes": None}) for one in others]
        other.add(prompts, completions, others, source=SOURCE)
        left = store.status().model_dump(exclude={"last_imports"})
        assert left == other.status().model_dump(exclude={"last_imports"})

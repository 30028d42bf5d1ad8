"""What a person wrote into the live chat goes with them: rows, free pages, exports; no old export brings it back."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harken.artifacts import read_manifest, verify
from harken.config.project import ProjectConfig
from harken.errors import UsageError
from harken.feedback.exchange import read_harken
from harken.feedback.live import conversation_tag
from harken.feedback.privacy.keys import keys_path, read_keys
from harken.feedback.store import FeedbackStore, Given, Person, audit
from harken.feedback.store.erase import Erasing, JudgmentPolicy, plan
from harken.feedback.store.live import LiveTask, record_turn
from harken.feedback.store.people import own_data, withdraw
from harken.feedback.store.streams import Streams
from harken.records import Comparison, Completion, Judge, Judgment, Message, Prompt, content_id
from tests.feedback.two_people import make_sharing
from tests.feedback.working import SOURCE, Workshop

ME = audit.COMMAND_LINE
TYPED = "my ferret Quillonius bites"
ANSWERED = "Dear owner of Quillonius"
KEPT = "what rhymes with orange"


@pytest.fixture
def work(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    # Keys of a PostgreSQL store lie in the user's folder.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with FeedbackStore.open(store_url) as store:
        yield Workshop.over(store)


def _turn(work: Workshop, person: Person, project: str, number: int, said: str, answer: str, *, vote: bool) -> None:
    """A message of a person with its two answers, voted on or not."""
    name = f"{person.name}{number}".ljust(32, "0")
    tags = ("chat", conversation_tag("0123456789abcdef"))
    messages = (Message(role="user", content=f"{said} {number}"),)
    prompt = Prompt(id=content_id("chat", name), messages=messages, source="chat", tags=tags)
    completions = tuple(
        Completion(
            id=content_id("chat", name, place),
            prompt_id=prompt.id,
            message=Message(role="assistant", content=f"{answer}, {place}"),
        )
        for place in (1, 2)
    )
    record_turn(work.store.database, LiveTask(name, person.id, project, prompt, completions, tags, time.time()))
    if vote:
        answered = Comparison(outcome="win", winner=completions[0].id, strength=2)
        work.leases.submit(name, person.id, Given(answered, rationale=f"as {said}"))
        judge = Judge(id="model-judge-1", kind="model")
        shown = tuple(one.id for one in completions)
        by_model = Judgment(id=f"m-{name}", judge=judge, prompt_id=prompt.id, shown=shown, answer=answered)
        work.store.add([], [], [by_model], source=SOURCE)


def _conversations(work: Workshop) -> tuple[Person, Person]:
    ann, bob = work.people("Ann", "Bob")
    project = work.projects.make("Live chat", ProjectConfig()).id
    _turn(work, ann, project, 1, TYPED, ANSWERED, vote=True)
    _turn(work, bob, project, 1, KEPT, "door hinge", vote=True)
    _turn(work, ann, project, 2, TYPED, ANSWERED, vote=False)
    return ann, bob


def _request(work: Workshop, person: Person, policy: JudgmentPolicy = "delete", *folders: Path) -> Erasing:
    return Erasing(person.id, policy, read_keys(keys_path(work.store.secrets), create=True), None, folders)


def _hits(folder: Path, text: str) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


@pytest.mark.parametrize("policy", ["delete", "anonymize"])
def test_no_word_of_a_conversation_is_left(work: Workshop, tmp_path: Path, policy: JudgmentPolicy) -> None:
    ann, bob = _conversations(work)
    work.store.export(tmp_path / "own")
    work.store.export(tmp_path / "shared", make_sharing(work.store, "s"))
    assert {Path(one).name for one in _hits(tmp_path / "own", TYPED)} == {"prompts.jsonl", "judgments.jsonl"}
    assert _hits(tmp_path / "shared", ANSWERED)
    with work.store.database.reading() as connection:
        rows = plan(connection, _request(work, ann, policy)).rows
    # Ann's vote and the model's on the same answers; two messages with two answers each.
    assert (rows["judgments"], rows["prompts"], rows["completions"], rows["leases"]) == (2, 2, 4, 2)
    found = work.store.erase(_request(work, ann, policy), actor=ME)
    assert found.done
    assert {Path(one.folder).name: one.num_judgments for one in found.exports} == {"own": 2, "shared": 2}
    # The database with its journals where it is a file, and both exports.
    for text in (TYPED, "Quillonius", ann.id):
        assert _hits(tmp_path, text) == []
    (prompt,) = work.store.prompts()
    assert KEPT in prompt.messages[0].content
    assert len(list(work.store.completions())) == 2
    assert {one.judge.id for one in work.store.judgments()} == {bob.id, "model-judge-1"}
    for name in ("own", "shared"):
        verify(tmp_path / name)
        manifest = read_manifest(tmp_path / name)
        assert manifest is not None
        assert manifest.num_records == 5
        assert manifest.info["counts"] == {"prompts": 1, "completions": 2, "judgments": 2}
        assert len(manifest.info["replaces"]) == 1
    with work.store.database.reading() as connection:
        audit.verify(connection)


def test_an_old_export_brings_no_conversation_back(work: Workshop, tmp_path: Path) -> None:
    ann, _ = _conversations(work)
    work.store.export(tmp_path / "out")
    copy = tmp_path / "copy"
    (tmp_path / "out").rename(copy)  # where no erasure finds it
    work.store.erase(_request(work, ann), actor=ME)
    old = read_harken(copy)
    added = work.store.add(old.prompts, old.completions, old.judgments, source=old.source)
    # Bob's turn is there already: a message, two answers, two judgments.
    assert (added.prompts, added.completions, added.judgments, added.already_there) == (0, 0, 0, 5)
    assert added.erased == 2
    assert not any(TYPED in one.messages[0].content for one in work.store.prompts())
    # A copy that is found later is mended by the same command, though the store knows the messages no more.
    found = work.store.erase(_request(work, ann, "delete", tmp_path), actor=ME)
    assert [Path(one.folder).name for one in found.exports] == ["copy"]
    assert _hits(copy, TYPED) == []
    assert _hits(copy, KEPT)
    verify(copy)


def test_ones_own_copy_has_what_one_wrote_and_nothing_of_others(work: Workshop) -> None:
    ann, bob = _conversations(work)
    with work.store.database.writing() as connection:
        copies = [str(own_data(connection, one.id, None, actor=ME)) for one in (ann, bob)]
    assert [TYPED in one for one in copies] == [True, False]
    assert [KEPT in one for one in copies] == [False, True]


@pytest.mark.parametrize("shared", [False, True])
def test_after_withdrawing_a_conversation_is_in_no_export(work: Workshop, tmp_path: Path, shared: bool) -> None:
    ann, bob = _conversations(work)
    with work.store.database.writing() as connection:
        assert withdraw(connection, ann.id, "participation", None, actor=ME) == 1
    work.store.export(tmp_path / "out", make_sharing(work.store, "s") if shared else None)
    assert _hits(tmp_path / "out", "Quillonius") == []
    verify(tmp_path / "out")
    found = read_harken(tmp_path / "out")
    # Bob's turn is whole: his message, two answers, his vote and the model's.
    assert [len(part) for part in (list(found.prompts), list(found.completions), list(found.judgments))] == [1, 2, 2]
    (project,) = work.projects.all()
    streams = Streams(work.store.database)
    sent = [list(streams.export(project.id, what, bob)) for what in ("judgments", "prompts", "completions")]
    assert [len(part) for part in sent] == [1, 1, 2]
    assert "Quillonius" not in str(sent)


def test_an_export_without_the_person_is_not_written_anew(work: Workshop, tmp_path: Path) -> None:
    _conversations(work)
    work.store.export(tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    carl = work.person("Carl")
    assert work.store.erase(_request(work, carl), actor=ME).exports == ()
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UsageError, match="neither the store nor an export"):
        work.store.erase(Erasing("nobody-at-all", "delete", _request(work, carl).keys, None), actor=ME)

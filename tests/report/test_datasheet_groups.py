"""What a datasheet says of groups: how far they agree, of published groups only, and never anew for one person."""

from collections.abc import Iterator
from pathlib import Path

import mlcroissant
import numpy as np
import pytest

from harken.config import DisclosureConfig
from harken.feedback.privacy.keys import demographics_key_path, read_demographics_key
from harken.feedback.source import ImportSource
from harken.feedback.store import FeedbackStore
from harken.feedback.store.people import set_demographics
from harken.preferences.judges import agreement_by_group, meetings
from harken.preferences.subgroups import preference_shift
from harken.preferences.votes import read_votes
from harken.records import Comparison, Completion, Judge, Judgment, Message, Prompt
from harken.report.datasheet import write_datasheet
from harken.report.disclosure import group_agreement, read_datasheet

AGES = ["30-39"] * 8 + ["40-49"] * 7 + ["50-59"] * 5 + ["90-99"]
NUM_PAIRS = 40


def _judgment(rng: np.random.Generator, person: int, pair: int, turned: bool) -> Judgment:
    """Most prefer the first of a pair; those whose taste is turned the second."""
    shown = (f"c{pair}a", f"c{pair}b")
    return Judgment(
        id=f"{person}-{pair}",
        judge=Judge(id=f"person-{person:02}", kind="person"),
        prompt_id="q",
        shown=shown if rng.random() < 0.5 else shown[::-1],
        answer=Comparison(outcome="win", winner=shown[int((rng.random() < 0.9) == turned)]),
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    """21 people, of whom those of 40-49 prefer the opposite."""
    rng = np.random.default_rng(0)
    prompt = Prompt(id="q", messages=(Message(role="user", content="x"),))
    completions = [
        Completion(id=f"c{pair}{side}", prompt_id="q", message=Message(role="assistant", content=f"{pair} {side}"))
        for pair in range(NUM_PAIRS)
        for side in "ab"
    ]
    judgments = [
        _judgment(rng, person, pair, age == "40-49")
        for person, age in enumerate(AGES)
        for pair in rng.choice(NUM_PAIRS, 15, replace=False).tolist()
    ]
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as opened:
        opened.add([prompt], completions, judgments, source=ImportSource("test", "f", "0" * 64))
        key = read_demographics_key(demographics_key_path(opened.secrets), create=True)
        with opened.database.writing() as connection:
            for person, age in enumerate(AGES):
                set_demographics(connection, f"person-{person:02}", {"age": age}, key)
        yield opened


def test_agreement_is_told_of_published_groups_only(store: FeedbackStore, tmp_path: Path) -> None:
    sheet = write_datasheet(store, DisclosureConfig(), tmp_path / "out")
    (release,) = sheet.demographics
    # One person of 90-99 is too few, and 50-59 goes with them, so that the one cannot be worked out.
    assert release.table.withheld == ("50-59", "90-99", "did not say")
    found = release.agreement
    assert found is not None
    assert [group.value for group in found.groups] == ["30-39", "40-49"]
    # As `collect agreement --groups` has it, rounded.
    published = {f"person-{n:02}": age for n, age in enumerate(AGES) if age in ("30-39", "40-49")}
    votes = read_votes(one for one in store.judgments() if one.judge.id in published)
    expected = agreement_by_group(meetings(votes), published, votes.judges)
    assert found.within == round(100 * expected["within"])
    assert found.between == round(100 * expected["between"])
    assert found.p == round(expected["p"], 2) < 0.05
    shifts = preference_shift(votes, published)
    assert shifts is not None
    assert found.groups[1].shift == round(shifts["40-49"]["shift"]["value"], 2) < -1
    for name in ("datasheet.md", "datasheet.html", "croissant.json"):
        text = (tmp_path / "out" / name).read_text()
        assert f"{found.within}%" in text
    assert "permutation test" in (tmp_path / "out" / "datasheet.md").read_text()


def test_one_person_more_changes_nothing_that_is_told(store: FeedbackStore) -> None:
    before = read_datasheet(store, DisclosureConfig()).demographics
    rng = np.random.default_rng(1)
    more = [_judgment(rng, 99, pair, True) for pair in range(NUM_PAIRS)]
    store.add([], [], more, source=ImportSource("test", "g", "1" * 64))
    key = read_demographics_key(demographics_key_path(store.secrets), create=False)
    with store.database.writing() as connection:
        set_demographics(connection, "person-99", {"age": "40-49"}, key)
    assert read_datasheet(store, DisclosureConfig()).demographics == before


def test_nothing_is_said_without_the_key_or_without_two_groups(store: FeedbackStore) -> None:
    demographics_key_path(store.secrets).unlink()
    (release,) = read_datasheet(store, DisclosureConfig()).demographics
    assert release.table.counts
    assert release.agreement is None
    judgments = list(store.judgments())
    assert group_agreement(judgments, {}, 5) is None
    assert group_agreement(judgments, {f"person-{n:02}": "all" for n in range(21)}, 5) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("about", [DisclosureConfig(), DisclosureConfig(license="MIT", citation="@misc{a}", url="x:y")])
def test_croissant_is_valid_and_reads_the_export(store: FeedbackStore, tmp_path: Path, about: DisclosureConfig) -> None:
    store.export(tmp_path / "export")
    write_datasheet(store, about, tmp_path / "out", tmp_path / "export")
    files = {
        name: str(tmp_path / "export" / name) for name in ("prompts.jsonl", "completions.jsonl", "judgments.jsonl")
    }
    # The reference implementation: it raises on what its standard forbids, and fetches nothing, as the files are here.
    data = mlcroissant.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"), mapping=files)
    assert not data.metadata.ctx.issues.errors
    records = list(data.records("judgments"))
    assert len(records) == 21 * 15
    assert {row["judgments/judge"] for row in records} == {f"person-{n:02}".encode() for n in range(21)}

"""Datasheets: what they state is counted right, groups are hidden, hostile text stays text, Croissant has its parts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harken.config import DisclosureConfig, PayConfig
from harken.errors import DataError
from harken.feedback.privacy.keys import demographics_key_path, read_demographics_key
from harken.feedback.source import ImportSource
from harken.feedback.store import FeedbackStore, people
from harken.feedback.store.people import set_demographics
from harken.records import Comparison, Completion, Judge, Judgment, Message, Prompt, RatedAxis, Rating, Timing
from harken.report.datasheet import write_datasheet
from harken.report.disclosure import Datasheet, measured_pay, read_datasheet

HOSTILE = "<script>alert(1)</script> | [x](javascript:1) `y`"


def _comparison(name: str, judge: int, winner: str | None, first: str = "a") -> Judgment:
    return Judgment(
        id=name,
        judge=Judge(id=f"person-{judge}", kind="person"),
        prompt_id="q",
        shown=("a", "b") if first == "a" else ("b", "a"),
        answer=Comparison(outcome="win" if winner else "tie", winner=winner),
        guideline="v1",
        timing=Timing(active_s=20.0 + judge),
    )


# Of three decided comparisons the first shown won two, and the longer one (b) won one.
JUDGMENTS = [
    _comparison("j1", 1, "a"),
    _comparison("j2", 2, "b", first="b"),
    _comparison("j3", 1, "a", first="b"),
    _comparison("j4", 3, None),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    prompt = Prompt(id="q", messages=(Message(role="user", content="x"),))
    texts = {"a": "short", "b": "a longer one"}
    completions = [
        Completion(id=name, prompt_id="q", message=Message(role="assistant", content=text))
        for name, text in texts.items()
    ]
    source = ImportSource("test", HOSTILE, "0" * 64, ("license: CC BY 4.0", "made by hand"))
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as opened:
        opened.add([prompt], completions, JUDGMENTS, source=source)
        yield opened


def test_what_it_states_is_counted_right(store: FeedbackStore) -> None:
    sheet = read_datasheet(store, DisclosureConfig())
    assert (sheet.num_judgments, sheet.num_people) == (4, 3)
    assert (sheet.shown_first_wins.num_yes, sheet.shown_first_wins.num_decided) == (2, 3)
    assert (sheet.longer_wins.num_yes, sheet.longer_wins.num_decided) == (1, 3)
    assert sheet.shown_first_wins.p_value == 1.0
    assert sheet.guideline_versions == {"v1": 4}
    assert sheet.missing == {"rationale": 1.0, "time": 0.0, "guideline version": 0.0}
    assert [(one.license, one.notes) for one in sheet.sources] == [("CC BY 4.0", ("made by hand",))]
    # a, b, a, tie on one pair: alpha is nominal over the pair's four votes, 1 - 5 * 3 / (4 * 4 - 6) ... by hand:
    # coincidences: 2 of 12 ordered pairs agree, so D_o = 10/12; n = 4, sum n_c^2 = 6, so D_e = (16 - 6) / 12.
    assert sheet.agreement[0].value == pytest.approx(0.0)


def test_what_was_not_told_is_a_known_gap(store: FeedbackStore) -> None:
    bare = " ".join(read_datasheet(store, DisclosureConfig()).known_gaps)
    for words in ("how the people were found", "how they were paid", "license", "No consent", "Nothing is known"):
        assert words in bare
    told = DisclosureConfig(recruitment="by mail", license="MIT", known_gaps="No one under 18 was asked.")
    gaps = read_datasheet(store, told).known_gaps
    assert "No one under 18 was asked." in gaps
    assert not [gap for gap in gaps if "found" in gap or "which license" in gap]


def test_pay_below_the_floor_is_a_warning(store: FeedbackStore) -> None:
    # The median of 21, 22, 21, 23 s is 21.5 s; 0.05 a judgment is 0.05 * 3600 / 21.5 = 8.37 an hour.
    pay = PayConfig(per_judgment=0.05, currency="EUR", least_per_hour=12)
    found = measured_pay(store.judgments(), DisclosureConfig(pay=pay))
    assert found.per_hour == pytest.approx(8.372, abs=1e-3)
    assert "pays 8.37 EUR an hour; the floor is 12.00" in found.warning
    assert not measured_pay(
        store.judgments(), DisclosureConfig(pay=pay.model_copy(update={"least_per_hour": 8}))
    ).warning


def test_small_groups_are_not_told(store: FeedbackStore, tmp_path: Path) -> None:
    key = read_demographics_key(demographics_key_path(store.secrets), create=True)
    with store.database.writing() as connection:
        for number in range(13):
            age = "30-39" if number < 7 else "40-49" if number < 12 else "90-99"
            set_demographics(connection, f"person-{number}", {"age": age}, key)
        text = people.publish_consent_text(connection, "participation", "1", "Yes?", actor="command line")
        for number in range(6):
            people.give_consent(connection, f"person-{number}", text)
    sheet = write_datasheet(store, DisclosureConfig(), tmp_path / "out")
    table = sheet.demographics[0].table
    assert [(count.value, count.num_people) for count in table.counts] == [("30-39", 7)]
    # One person of 90-99 and nobody who did not say, and 40-49 to protect them.
    assert table.withheld == ("40-49", "90-99", "did not say")
    assert sheet.consent_versions is not None
    assert [count.num_people for count in sheet.consent_versions.counts] == [6]
    # One more person changes nothing that is told.
    with store.database.writing() as connection:
        set_demographics(connection, "person-99", {"age": "30-39"}, key)
    assert read_datasheet(store, DisclosureConfig()).demographics == sheet.demographics


def test_hostile_text_stays_text(store: FeedbackStore, tmp_path: Path) -> None:
    write_datasheet(store, DisclosureConfig(title=HOSTILE), tmp_path)
    page = (tmp_path / "datasheet.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    text = (tmp_path / "datasheet.md").read_text()
    assert "<script>" not in text
    assert "](javascript" not in text.replace("\\[x](javascript", "")


def test_the_facts_fit_their_schema_and_all_files_are_written(store: FeedbackStore, tmp_path: Path) -> None:
    store.export(tmp_path / "export")
    sheet = write_datasheet(store, DisclosureConfig(license="MIT"), tmp_path / "out", tmp_path / "export")
    assert Datasheet.model_validate_json((tmp_path / "out" / "datasheet.json").read_text()) == sheet
    needed = {"about", "num_people", "consent_versions", "guideline_versions", "missing", "agreement", "known_gaps"}
    assert needed | {"shown_first_wins", "longer_wins"} <= set(Datasheet.model_json_schema()["required"])
    found = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert found["@type"] == "sc:Dataset"
    assert found["license"] == ["MIT", "CC BY 4.0"]
    assert {one["name"] for one in found["distribution"]} == {"prompts.jsonl", "completions.jsonl", "judgments.jsonl"}
    ids = {one["@id"] for one in found["distribution"]}
    for records in found["recordSet"]:
        assert {field["source"]["fileObject"]["@id"] for field in records["field"]} <= ids


def test_ratings_have_an_agreement_for_each_axis(tmp_path: Path) -> None:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        prompt = Prompt(id="q", messages=(Message(role="user", content="x"),))
        completions = [
            Completion(id=name, prompt_id="q", message=Message(role="assistant", content=name)) for name in "ab"
        ]
        ratings = [
            Judgment(
                id=f"{name}{judge}",
                judge=Judge(id=f"p{judge}", kind="person"),
                prompt_id="q",
                shown=(name,),
                answer=Rating(axes={"good": RatedAxis(value=value, low=1, high=5)}),
            )
            for name, value in (("a", 1), ("b", 5))
            for judge in range(2)
        ]
        store.add([prompt], completions, ratings, source=ImportSource("test", "f", "0" * 64))
        agreement = read_datasheet(store, DisclosureConfig()).agreement
    assert [(one.of, one.value, one.num_items) for one in agreement] == [("rating good, interval", 1.0, 2)]


def test_an_empty_store_has_no_datasheet(tmp_path: Path) -> None:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store, pytest.raises(DataError, match="no judgments"):
        read_datasheet(store, DisclosureConfig())

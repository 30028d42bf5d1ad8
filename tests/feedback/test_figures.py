"""The dashboard's numbers: by hand, as a page, as JSON, and as `harken collect agreement` has them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harken.config.project import CritiqueTask, RatingAxis, RatingTask
from harken.feedback.store import Given
from harken.feedback.store.people import withdraw
from harken.feedback.web import figures as figures_module
from harken.feedback.web.figures import figures_of
from harken.preferences.votes_report import votes_report
from harken.records import Comparison, Critique, RatedAxis, Rating
from tests.feedback.web_client import House
from tests.feedback.working import SOURCE, lines


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    figures_module._kept.clear()  # pyright: ignore[reportPrivateUsage]
    house = House(tmp_path)
    yield house
    house.close()


def _judge(house: House, project_id: str, person_id: str, choices: str, seconds: float) -> None:
    """Answer as many tasks as there are letters: a, b or t says which completion is better, s skips."""
    for letter in choices:
        lease = house.work.leases.claim(project_id, person_id)
        outcome = {"t": "tie", "s": "skip"}.get(letter, "win")
        winner = [one.id for one in lease.completions if one.message.content.startswith(f"Answer {letter}")]
        answer = Comparison.model_validate({"outcome": outcome, "winner": winner[0] if winner else None})
        house.work.leases.submit(lease.id, person_id, Given(answer, active_s=seconds))


def test_figures_are_those_counted_by_hand(house: House) -> None:
    ann, bob = house.work.people("Ann", "Bob")
    project = house.work.project(0, overlap=2)
    golds = [
        line.model_copy(update={"gold": Comparison(outcome="win", winner=line.completions[0].id)}) for line in lines(3)
    ]
    house.work.projects.add_tasks(project.id, [*golds, *lines(5)[3:]], SOURCE)
    _judge(house, project.id, ann.id, "abaat", 10)
    _judge(house, project.id, bob.id, "aabas", 20)
    found = figures_of(house.site, house.work.projects.get(project.id))
    assert (found["progress"]["num_done"], found["progress"]["num_slots"]) == (9, 10)
    assert [day["num_judgments"] for day in found["days"]] == [0] * 27 + [9]
    assert found["days"][-1]["day"] == time.strftime("%Y-%m-%d", time.gmtime())
    # Ann: a b a of a a a; Bob: a a b.
    assert (found["gold"]["value"], found["gold"]["n"]) == (4 / 6, 6)
    assert found["gold"]["low"] < 4 / 6 < found["gold"]["high"]
    by_name = {one["name"]: one for one in found["people"]}
    assert (by_name["Ann"]["num_judgments"], by_name["Ann"]["num_skipped"]) == (5, 0)
    assert (by_name["Bob"]["num_judgments"], by_name["Bob"]["num_skipped"]) == (4, 1)
    assert (by_name["Ann"]["seconds"]["median"], by_name["Bob"]["seconds"]["median"]) == (10, 20)
    assert by_name["Ann"]["gold"]["value"] == by_name["Bob"]["gold"]["value"] == 2 / 3
    assert 0 < by_name["Bob"]["agreement"]["low"] < by_name["Bob"]["agreement"]["high"] < 1
    # They met on four tasks and agreed on two of them: a a, a a.
    assert found["statistics"]["votes"]["raw_agreement"] == pytest.approx(0.5)
    assert found["statistics"]["votes"]["position"]["shown_first_wins"]["n"] == 8
    store = house.site.store
    report = votes_report(store.judgments(), store.completions(), resamples=200)
    assert report
    assert found["statistics"]["votes"]["alpha_nominal"] == report["alpha_nominal"]


def test_figures_follow_each_answer_and_are_kept_between(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (ann,) = house.work.people("Ann")
    project = house.work.project(3)
    made: list[int] = []
    measure = house.site.measure

    def counted(judgments: object, completions: object) -> object:
        made.append(1)
        return measure(judgments, completions)  # pyright: ignore[reportArgumentType]

    object.__setattr__(house.site, "measure", counted)
    assert figures_of(house.site, project)["people"] == []
    for number in (1, 2):
        _judge(house, project.id, ann.id, "a", 1)
        for _ in range(2):
            assert figures_of(house.site, project)["people"][0]["num_judgments"] == number
    assert len(made) == 3
    monkeypatch.setattr(figures_module, "MAX_MEASURED", 1)
    _judge(house, project.id, ann.id, "b", 1)
    assert figures_of(house.site, project)["measured"] == {"num_judgments": 1, "of": 3}


def test_people_who_withdrew_are_in_no_statistic(house: House) -> None:
    ann, bob = house.work.people("Ann", "Bob")
    project = house.work.project(2, overlap=2)
    _judge(house, project.id, ann.id, "aa", 1)
    _judge(house, project.id, bob.id, "ab", 1)
    with house.site.store.database.writing() as connection:
        withdraw(connection, bob.id, "participation", None, actor="command line")
    found = figures_of(house.site, project)
    assert found["statistics"]["votes"]["num_judges"] == 1


def test_every_kind_of_project_has_a_page(house: House) -> None:
    house.work.people("Ann")
    ann = house.work.accounts.everyone()[0]
    axes = (RatingAxis(name="<b>tone</b>"), RatingAxis(name="truth"))
    rated = house.work.project(2, RatingTask(axes=axes))
    for _ in range(2):
        lease = house.work.leases.claim(rated.id, ann.id)
        values = {axis.name: RatedAxis(value=4, low=1, high=5) for axis in axes}
        house.work.leases.submit(lease.id, ann.id, Given(Rating(axes=values)))
    critiques = house.work.project(1, CritiqueTask())
    lease = house.work.leases.claim(critiques.id, ann.id)
    answer = Critique(completion_id=lease.completions[0].id, text="secret words")
    house.work.leases.submit(lease.id, ann.id, Given(answer))
    client = house.logged_in("Olga")
    for project in (rated, critiques, house.work.project(0)):
        page = client.get(f"/manage/projects/{project.id}/figures")
        assert page.status_code == 200, page.text
        data = client.get(f"/manage/projects/{project.id}/figures.json")
        assert data.json()["project"]["id"] == project.id
        for answer in (page, data):
            assert "secret words" not in answer.text
            assert "Question 0" not in answer.text
        assert "<b>tone</b>" not in page.text
    tone = client.get(f"/manage/projects/{rated.id}/figures.json").json()["statistics"]["ratings"]["<b>tone</b>"]
    assert tone["num_judgments"] == 2

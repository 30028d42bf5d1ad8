"""Qualification and gold: who is let in, and that nobody can tell a test from a task."""

import re
from pathlib import Path

import pytest

from harken.config.project import RankingTask, RatingTask
from harken.errors import DataError
from harken.feedback.grading import is_right
from harken.feedback.store import FeedbackStore, Given, Lease, NoTask
from harken.feedback.store.projects import Member
from harken.feedback.tasks import TaskLine, check_task
from harken.records import Abstention, Answer, Comparison, Critique, RankingAnswer, RatedAxis, Rating
from tests.feedback.web_client import House, post
from tests.feedback.working import SOURCE, Workshop, lines


def _gold(line: TaskLine, **fields: object) -> TaskLine:
    """A task whose first completion is known to be the better one."""
    return line.model_copy(update={"gold": Comparison(outcome="win", winner=line.completions[0].id), **fields})


def _answer(work: Workshop, lease: Lease, *, right: bool) -> None:
    best = next(one for one in lease.completions if one.message.content.startswith("Answer a"))
    other = next(one for one in lease.completions if one is not best)
    given = Comparison(outcome="win", winner=(best if right else other).id)
    work.leases.submit(lease.id, lease.person_id, Given(given))


def _is_test(lease: Lease) -> bool:
    return int(lease.prompt.messages[0].content.split()[1].rstrip("?")) >= 100


def _project(work: Workshop, num_tests: int, accuracy: float, num_tasks: int = 2) -> str:
    project = work.project(num_tasks, qualification={"num_tasks": 2, "accuracy": accuracy})
    tests = [_gold(line, qualifies=True) for line in lines(100 + num_tests)[100:]]
    work.projects.add_tasks(project.id, tests, SOURCE)
    return project.id


def test_people_show_what_they_can_before_they_get_tasks_that_count(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store:
        work = Workshop.over(store)
        ann, bob, carl = work.people("Ann", "Bob", "Carl")
        project_id = _project(work, 3, 0.5)
        for person, rights in ((ann, (True, False)), (bob, (False, False)), (carl, (True, True))):
            for right in rights:
                lease = work.leases.claim(project_id, person.id)
                assert _is_test(lease)
                assert work.leases.claim(project_id, person.id).id == lease.id
                _answer(work, lease, right=right)
        for person in (ann, carl):
            lease = work.leases.claim(project_id, person.id)
            assert not _is_test(lease)
            _answer(work, lease, right=False)
        with pytest.raises(NoTask, match="unqualified"):
            work.leases.claim(project_id, bob.id)
        # Tests are not what was asked for.
        progress = work.projects.progress(project_id)
        assert (progress.num_tasks, progress.num_slots, progress.num_done) == (2, 2, 2)
        assert progress.num_surplus == 0
        work.projects.set_member(project_id, Member(person_id=bob.id, is_qualified=True), ann)
        with pytest.raises(NoTask, match="empty"):
            work.leases.claim(project_id, bob.id)


def test_a_changed_answer_does_not_qualify(tmp_path: Path) -> None:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        work = Workshop.over(store)
        (ann,) = work.people("Ann")
        project_id = _project(work, 2, 1.0)
        for _ in range(2):
            lease = work.leases.claim(project_id, ann.id)
            _answer(work, lease, right=False)
            before = work.leases.get(lease.id, ann.id).judgment
            assert before
            best = next(one for one in lease.completions if one.message.content.startswith("Answer a"))
            again = Given(Comparison(outcome="win", winner=best.id), replaces=before.id)
            work.leases.submit(lease.id, ann.id, again)
        with pytest.raises(NoTask, match="unqualified"):
            work.leases.claim(project_id, ann.id)


def test_skipping_a_test_is_no_way_in(tmp_path: Path) -> None:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        work = Workshop.over(store)
        (ann,) = work.people("Ann")
        project_id = _project(work, 5, 0.5)
        for _ in range(2):
            lease = work.leases.claim(project_id, ann.id)
            work.leases.submit(lease.id, ann.id, Given(Comparison(outcome="skip")))
        with pytest.raises(NoTask, match="unqualified"):
            work.leases.claim(project_id, ann.id)


def test_nobody_works_where_there_is_nothing_to_qualify_by(tmp_path: Path) -> None:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as store:
        work = Workshop.over(store)
        (ann,) = work.people("Ann")
        project_id = _project(work, 1, 0.5)
        _answer(work, work.leases.claim(project_id, ann.id), right=True)
        with pytest.raises(NoTask, match="unqualified"):
            work.leases.claim(project_id, ann.id)


def test_a_person_who_does_not_qualify_is_told_so_and_the_owner_lets_them_in(tmp_path: Path) -> None:
    house = House(tmp_path)
    (ann,) = house.work.people("Ann")
    project_id = _project(house.work, 2, 1.0)
    client, olga = house.logged_in("Ann"), house.logged_in("Olga")
    for _ in range(2):
        lease = house.work.leases.claim(project_id, ann.id)
        _answer(house.work, lease, right=False)
    where = post(client, f"/projects/{project_id}/next").headers["location"]
    assert where.endswith("?why=unqualified")
    assert "answer its first tasks as expected" in client.get(where).text
    fields = {"person_id": ann.id, "is_qualified": "on"}
    assert post(olga, f"/manage/projects/{project_id}/members", fields).status_code == 303
    assert "qualified by you" in olga.get(f"/manage/projects/{project_id}").text
    assert "/tasks/" in post(client, f"/projects/{project_id}/next").headers["location"]
    house.close()


def test_tests_and_gold_look_like_any_task(tmp_path: Path) -> None:
    """Pages of ordinary, gold and qualification tasks are the same but for what is asked and random ids."""
    house = House(tmp_path)
    house.work.people("Ann")
    project_id = _project(house.work, 2, 0.1, num_tasks=0)
    kinds = [_gold(line) if number % 2 else line for number, line in enumerate(lines(16)[10:])]
    house.work.projects.add_tasks(project_id, kinds, SOURCE)
    client = house.logged_in("Ann")
    pages: list[tuple[str, str]] = []
    for _ in range(8):
        where = post(client, f"/projects/{project_id}/next").headers["location"]
        answer = client.get(where)
        pages.append((answer.text, str(sorted(answer.headers.items()))))
        assert re.fullmatch(r"/tasks/[0-9a-f]{32}", where)
        first = answer.text.index("Answer a") < answer.text.index("Answer b")
        post(client, where, {"outcome": "answer", "choice": "1-2" if first else "2-2"})
    house.close()
    # What may differ: ids of leases and forms, the numbers in the texts, their order, and how many were done.
    plain = [
        re.sub(
            r"\d+", "#", re.sub(r"[0-9a-f]{12,}", "*", text).replace("Answer a", "Answer").replace("Answer b", "Answer")
        )
        for text, _ in pages
    ]
    assert len(set(plain)) == 1
    assert len({re.sub(r"\d+", "#", headers) for _, headers in pages}) == 1
    assert not any("gold" in text or "qualif" in text for text, _ in pages)


RANKS = RankingAnswer(ranks={"a": 1, "b": 2, "c": 2})
RATED = Rating(axes={"q": RatedAxis(value=4, low=1, high=5)})
A_WINS = Comparison(outcome="win", winner="a", strength=1)


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (A_WINS, Comparison(outcome="win", winner="a", strength=3), True),
        (A_WINS, Comparison(outcome="win", winner="b"), False),
        (A_WINS, Comparison(outcome="tie"), False),
        (Comparison(outcome="tie"), Comparison(outcome="tie"), True),
        (Comparison(outcome="both_bad"), Comparison(outcome="tie"), False),
        (RANKS, RankingAnswer(ranks={"a": 1, "b": 3, "c": 2}), True),
        (RANKS, RankingAnswer(ranks={"a": 1, "b": 1, "c": 2}), False),
        (RANKS, RankingAnswer(ranks={"a": 1, "b": 2}), False),
        (RATED, Rating(axes={"q": RatedAxis(value=5, low=1, high=5)}), True),
        (RATED, Rating(axes={"q": RatedAxis(value=2, low=1, high=5)}), False),
        (RATED, Rating(axes={"r": RatedAxis(value=4, low=1, high=5)}), False),
        (RATED, Abstention(outcome="unsure"), False),
        (A_WINS, RANKS, False),
    ],
)
def test_what_counts_as_right(gold: Answer, answer: Answer, right: bool) -> None:
    assert is_right(answer, gold) is right


def test_a_test_needs_an_answer_that_can_be_compared() -> None:
    (line,) = lines(1, 1)
    critique = Critique(completion_id=line.completions[0].id, text="good")
    for gold in (None, critique):
        with pytest.raises(DataError, match="qualifies people needs a right answer"):
            check_task(line.model_copy(update={"qualifies": True, "gold": gold}), RatingTask(), "t:1")
    (ranked,) = lines(1, 3)
    gold = RankingAnswer(ranks={one.id: place for place, one in enumerate(ranked.completions, start=1)})
    check_task(ranked.model_copy(update={"qualifies": True, "gold": gold}), RankingTask(), "t:1")

"""Leases: overlap, nobody twice, expiry, surplus, drafts, and answers that become judgments exactly once."""

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from harken.errors import DataError
from harken.feedback.store import (
    AnsweredOtherwise,
    FeedbackStore,
    Given,
    Member,
    NoTask,
    WrongLease,
)
from harken.feedback.store import leases as leases_module
from harken.feedback.store import slots as slots_module
from harken.records import Abstention, Comparison, Flag
from tests.feedback.working import SOURCE, Workshop, lines, win


@pytest.fixture
def work(store_url: str) -> Iterator[Workshop]:
    with FeedbackStore.open(store_url) as store:
        yield Workshop.over(store)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leases_module, "time", clock)
    monkeypatch.setattr(slots_module, "time", clock)
    return clock


def _nothing(work: Workshop, project_id: str, person_id: str) -> str:
    with pytest.raises(NoTask) as caught:
        work.leases.claim(project_id, person_id)
    return caught.value.why


def test_a_task_goes_to_as_many_people_as_its_overlap_and_to_nobody_twice(work: Workshop) -> None:
    ann, bob, eve = work.people("Ann", "Bob", "Eve")
    project = work.project(num_tasks=2, overlap=2)
    for person in (ann, bob):
        for _ in range(2):
            lease = work.leases.claim(project.id, person.id)
            work.leases.submit(lease.id, person.id, win(lease))
        assert _nothing(work, project.id, person.id) == "empty"
    assert _nothing(work, project.id, eve.id) == "empty"
    judgments = list(work.store.judgments())
    pairs = Counter((judgment.prompt_id, judgment.judge.id) for judgment in judgments)
    assert len(pairs) == 4
    assert set(pairs.values()) == {1}
    progress = work.projects.progress(project.id)
    assert (progress.num_tasks, progress.num_slots, progress.num_done, progress.num_judgments) == (2, 4, 4, 4)
    assert progress.by_person == {ann.id: 2, bob.id: 2}


def test_an_unfinished_task_comes_back_in_the_same_order(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    project = work.project()
    first = work.leases.claim(project.id, ann.id)
    again = work.leases.claim(project.id, ann.id)
    assert (again.id, again.completions) == (first.id, first.completions)


def test_a_judgment_says_what_was_shown_and_chosen(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    project = work.project(num_tasks=0)
    right = Comparison(outcome="win", winner=lines(1)[0].completions[1].id)
    gold = lines(1, gold=right.model_dump(), tags=["math"], selection_probability=0.25)
    assert work.projects.add_tasks(project.id, gold, SOURCE) == (1, 0)
    lease = work.leases.claim(project.id, ann.id)
    given = win(lease, 1, rationale="because", flags=(Flag(reason="other", note="odd"),), active_s=2.5)
    judgment = work.leases.submit(lease.id, ann.id, given)
    assert judgment.shown == tuple(completion.id for completion in lease.completions)
    assert isinstance(judgment.answer, Comparison)
    assert (judgment.answer.winner, judgment.answer.strength) == (lease.completions[1].id, 2)
    assert (judgment.judge.id, judgment.judge.kind) == (ann.id, "person")
    assert (judgment.rationale, judgment.flags, judgment.timing.active_s) == ("because", given.flags, 2.5)
    assert judgment.assignment is not None
    assert (judgment.assignment.gold, judgment.assignment.tags) == (right, ("math",))
    assert (judgment.assignment.selection_probability, judgment.assignment.surplus) == (0.25, False)
    assert list(work.store.judgments()) == [judgment]


def test_submitting_twice_is_submitting_once(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    project = work.project()
    lease = work.leases.claim(project.id, ann.id)
    first = work.leases.submit(lease.id, ann.id, win(lease))
    assert work.leases.submit(lease.id, ann.id, win(lease)) == first
    with pytest.raises(AnsweredOtherwise):
        work.leases.submit(lease.id, ann.id, win(lease, 1))
    assert list(work.store.judgments(include_superseded=True)) == [first]


def test_a_changed_answer_supersedes_and_both_are_kept(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    project = work.project()
    lease = work.leases.claim(project.id, ann.id)
    first = work.leases.submit(lease.id, ann.id, win(lease))
    second = work.leases.submit(lease.id, ann.id, win(lease, 1, replaces=first.id))
    assert second.supersedes == first.id
    # The same change sent again (a double click) is the same judgment.
    assert work.leases.submit(lease.id, ann.id, win(lease, 1, replaces=first.id)) == second
    assert list(work.store.judgments(include_superseded=True)) == [first, second]
    assert list(work.store.judgments()) == [second]
    assert [one.judgment for one in work.leases.history(project.id, ann.id)] == [second]
    assert work.projects.progress(project.id).num_done == 1


def test_a_skipped_task_goes_to_somebody_else_and_a_second_thought_counts(work: Workshop) -> None:
    ann, bob = work.people("Ann", "Bob")
    project = work.project(num_tasks=1)
    lease = work.leases.claim(project.id, ann.id)
    skip = work.leases.submit(lease.id, ann.id, Given(Comparison(outcome="skip")))
    assert _nothing(work, project.id, ann.id) == "empty"
    assert work.projects.progress(project.id).num_skipped == 1
    answer = work.leases.submit(lease.id, ann.id, win(lease, replaces=skip.id))
    assert answer.assignment is not None
    assert not answer.assignment.surplus
    assert _nothing(work, project.id, bob.id) == "empty"
    assert work.leases.count_of(project.id, ann.id) == 1


def test_an_expired_task_goes_on_and_a_late_answer_is_kept_as_surplus(work: Workshop, clock: Clock) -> None:
    ann, bob = work.people("Ann", "Bob")
    project = work.project(num_tasks=1, lease_minutes=10)
    late = work.leases.claim(project.id, ann.id)
    clock.now += 599
    assert _nothing(work, project.id, bob.id) == "empty"
    assert work.leases.keep(late.id, ann.id).seconds_left == 600
    clock.now += 601
    taken = work.leases.claim(project.id, bob.id)
    assert taken.prompt == late.prompt
    assert not work.leases.get(late.id, ann.id).is_held
    for lease, person, surplus in ((taken, bob, False), (late, ann, True)):
        judgment = work.leases.submit(lease.id, person.id, win(lease))
        assert judgment.assignment is not None
        assert judgment.assignment.surplus == surplus
    progress = work.projects.progress(project.id)
    assert (progress.num_done, progress.num_judgments, progress.num_surplus) == (1, 2, 1)


def test_an_expired_task_that_nobody_took_is_still_ones_own(work: Workshop, clock: Clock) -> None:
    (ann,) = work.people("Ann")
    project = work.project(num_tasks=1, lease_minutes=1)
    lease = work.leases.claim(project.id, ann.id)
    clock.now += 3600
    assert work.leases.claim(project.id, ann.id).id == lease.id
    judgment = work.leases.submit(lease.id, ann.id, win(lease))
    assert judgment.assignment is not None
    assert not judgment.assignment.surplus


def test_drafts_are_kept_until_the_answer_and_belong_to_one_person(work: Workshop) -> None:
    ann, bob = work.people("Ann", "Bob")
    project = work.project()
    lease = work.leases.claim(project.id, ann.id)
    draft = '{"rationale": "half \u202e a th\\u0000ought"}'
    assert work.leases.keep(lease.id, ann.id, draft).draft == draft
    assert work.leases.keep(lease.id, ann.id).draft == draft
    for attempt in (
        lambda: work.leases.get(lease.id, bob.id),
        lambda: work.leases.keep(lease.id, bob.id, "stolen"),
        lambda: work.leases.submit(lease.id, bob.id, win(lease)),
    ):
        with pytest.raises(WrongLease):
            attempt()
    work.leases.submit(lease.id, ann.id, win(lease))
    assert work.leases.get(lease.id, ann.id).draft == ""
    with pytest.raises(DataError, match="at most"):
        work.leases.keep(lease.id, ann.id, "x" * (leases_module.MAX_DRAFT + 1))


def test_pools_members_and_limits(work: Workshop, clock: Clock) -> None:
    ann, bob = work.people("Ann", "Bob")
    olga = work.accounts.everyone()[-1]
    assert olga.role == "owner"
    project = work.project(num_tasks=0, access="members", max_tasks_a_day=2)
    work.projects.add_tasks(project.id, [*lines(2, pool="law"), *lines(5)], SOURCE)
    assert _nothing(work, project.id, ann.id) == "members"
    work.projects.set_member(project.id, Member(person_id=ann.id), olga)
    work.projects.set_member(project.id, Member(person_id=bob.id, pools=("law",), max_tasks=3), olga)
    assert len(work.projects.members(project.id)) == 2

    def do(person_id: str) -> str:
        lease = work.leases.claim(project.id, person_id)
        work.leases.submit(lease.id, person_id, win(lease))
        judgments = list(work.store.judgments())
        assert judgments[-1].assignment is not None
        return judgments[-1].assignment.pool

    assert [do(ann.id), do(ann.id)] == ["", ""]
    assert _nothing(work, project.id, ann.id) == "day"
    assert [do(bob.id), do(bob.id)] == ["law", "law"]
    clock.now += 90_000
    assert [do(bob.id), do(ann.id)] == ["", ""]
    assert _nothing(work, project.id, bob.id) == "limit"


def test_a_closed_project_gives_and_takes_nothing(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    olga = work.accounts.everyone()[-1]
    project = work.project()
    lease = work.leases.claim(project.id, ann.id)
    work.projects.set_open(project.id, False, olga)
    assert _nothing(work, project.id, ann.id) == "closed"
    with pytest.raises(NoTask):
        work.leases.submit(lease.id, ann.id, win(lease))


def test_judgments_carry_the_guideline_they_were_made_by(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    olga = work.accounts.everyone()[-1]
    project = work.project()
    work.projects.set_guideline(project.id, "Be kind.", olga)
    work.projects.set_guideline(project.id, "Be kind.", olga)
    first = work.leases.claim(project.id, ann.id)
    work.projects.set_guideline(project.id, "Be strict.", olga)
    assert work.leases.submit(first.id, ann.id, win(first)).guideline.startswith("1:")
    second = work.leases.claim(project.id, ann.id)
    assert work.leases.submit(second.id, ann.id, win(second)).guideline.startswith("2:")


def test_tasks_are_added_once_and_all_or_none(work: Workshop) -> None:
    project = work.project(num_tasks=0)
    assert work.projects.add_tasks(project.id, lines(700), SOURCE) == (700, 0)
    assert work.projects.add_tasks(project.id, lines(701), SOURCE) == (1, 700)
    clash = lines(702)[701].model_copy(update={"prompt": lines(1)[0].prompt.model_copy(update={"source": "other"})})
    clash = clash.model_copy(update={"completions": ()})
    with pytest.raises(DataError, match="other content"):
        work.projects.add_tasks(project.id, [*lines(800), clash], SOURCE)
    assert work.projects.progress(project.id).num_tasks == 701


def test_an_abstention_is_an_answer_but_for_a_skip(work: Workshop) -> None:
    (ann,) = work.people("Ann")
    project = work.project(num_tasks=2)
    for outcome, done in (("unsure", 1), ("skip", 1)):
        lease = work.leases.claim(project.id, ann.id)
        work.leases.submit(lease.id, ann.id, Given(Abstention.model_validate({"outcome": outcome})))
        assert work.projects.progress(project.id).num_done == done


def _work_off(url: str, project_id: str, person_id: str, tasks: int, failures: list[BaseException]) -> None:
    try:
        with FeedbackStore.open(url, create=False) as store:
            work = Workshop.over(store)
            for _ in range(tasks):
                try:
                    lease = work.leases.claim(project_id, person_id)
                except NoTask:
                    return
                for _ in range(2):  # a double click
                    work.leases.submit(lease.id, person_id, win(lease))
    except BaseException as error:
        failures.append(error)
        raise


def _crowd(work: Workshop, url: str, *, num_people: int, num_tasks: int, overlap: int, each: int) -> None:
    people = work.people(*[f"P{number}" for number in range(num_people)])
    project = work.project(num_tasks=num_tasks, overlap=overlap)
    failures: list[BaseException] = []
    threads = [
        threading.Thread(target=_work_off, args=(url, project.id, person.id, each, failures)) for person in people
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    judgments = list(work.store.judgments(include_superseded=True))
    asked = min(num_people * each, num_tasks * overlap)
    assert len(judgments) == asked
    per_task = Counter(judgment.prompt_id for judgment in judgments)
    assert max(per_task.values()) <= overlap
    per_pair = Counter((judgment.prompt_id, judgment.judge.id) for judgment in judgments)
    assert max(per_pair.values()) == 1
    progress = work.projects.progress(project.id)
    assert (progress.num_done, progress.num_surplus) == (asked, 0)


def test_a_crowd_loses_and_doubles_nothing(work: Workshop, store_url: str) -> None:
    # Each with connections of its own, as server processes have; more asked for than there is.
    _crowd(work, store_url, num_people=6, num_tasks=20, overlap=3, each=20)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 30,000 transactions: 6 minutes on two busy cores
def test_fifty_people_claim_two_hundred_tasks_each(work: Workshop, store_url: str) -> None:
    _crowd(work, store_url, num_people=50, num_tasks=4000, overlap=3, each=200)

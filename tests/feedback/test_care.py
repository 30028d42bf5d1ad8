"""Check 7 of the privacy checks: nobody has to see what harms them. And check 3: nobody has to say who they are."""

import random
import re
from typing import Any

import pytest

from harken.config.project import Qualification
from harken.feedback.privacy.keys import demographics_key_path, read_demographics_key, stored_demographics_key
from harken.feedback.questions import MAX_WORDS, NOT_SAID, QUESTIONS
from harken.feedback.store import FeedbackStore, Given, NoTask, audit, people
from harken.feedback.store.care import opt_out, opted_out
from harken.feedback.store.qualify import qualification_of
from harken.feedback.tasks import TaskLine
from harken.records import Comparison
from tests.feedback.web_client import House, post
from tests.feedback.working import SOURCE, Workshop, lines, win


def _tagged(num_tasks: int, *tags: str, every: int = 1, **fields: Any) -> list[TaskLine]:
    found = lines(num_tasks, **fields)
    return [line.model_copy(update={"tags": tags if n % every == 0 else ()}) for n, line in enumerate(found)]


def _opt_out(work: Workshop, person_id: str, *tags: str) -> None:
    with work.store.database.writing() as connection:
        opt_out(connection, person_id, tags)


@pytest.mark.parametrize("num_claims", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_who_opted_out_is_never_given_a_marked_task(store: FeedbackStore, num_claims: int) -> None:
    work = Workshop.over(store)
    num_people = num_claims // 40
    everyone = work.people(*(f"person {n}" for n in range(num_people)))
    project = work.project(0, sensitive_tags=["violence"], overlap=100)
    work.projects.add_tasks(project.id, _tagged(140, "de", "violence", every=2), SOURCE)
    careful = {person.id for person in everyone[::2]}
    for person in careful:
        _opt_out(work, person, "violence", "not a tag of any task")
    rng = random.Random(0)
    marked: dict[bool, int] = {False: 0, True: 0}
    with store.database.writing():  # one transaction: so many would wait for the disk
        for _ in range(num_claims):
            person = rng.choice(everyone).id
            try:
                lease = work.leases.claim(project.id, person)
            except NoTask:
                continue
            assert not (person in careful and lease.warnings)
            marked[bool(lease.warnings)] += 1
            work.leases.submit(lease.id, person, win(lease))
    assert sum(marked.values()) > 0.95 * num_claims
    assert marked[True] > num_claims / 8


def test_opting_out_holds_for_a_task_in_hand_and_for_qualification(store: FeedbackStore) -> None:
    work = Workshop.over(store)
    (ann,) = work.people("Ann")
    qualification = Qualification(num_tasks=1)
    project = work.project(0, sensitive_tags=["violence"], qualification=qualification.model_dump())
    gold = {"type": "comparison", "outcome": "tie"}
    work.projects.add_tasks(project.id, _tagged(2, "violence", every=2, qualifies=True, gold=gold), SOURCE)
    first = work.leases.claim(project.id, ann.id)
    assert first.warnings == ("violence",)
    _opt_out(work, ann.id, "violence")
    second = work.leases.claim(project.id, ann.id)
    assert second.warnings == ()
    assert second.prompt.id != first.prompt.id
    # To skip what one refuses is no wrong answer.
    work.leases.submit(first.id, ann.id, Given(answer=Comparison(outcome="skip")))
    with store.database.reading() as connection:
        assert qualification_of(connection, project.id, ann.id) == (0, 0)
    _opt_out(work, ann.id)
    with store.database.reading() as connection:
        assert qualification_of(connection, project.id, ann.id) == (1, 0)


def test_own_data_and_erasure_know_what_somebody_opted_out_of(store: FeedbackStore) -> None:
    work = Workshop.over(store)
    (ann,) = work.people("Ann")
    _opt_out(work, ann.id, "violence")
    with store.database.writing() as connection:
        copy = people.own_data(connection, ann.id, None, actor=audit.COMMAND_LINE)
    assert copy["opt_outs"] == [{"person_id": ann.id, "tag": "violence"}]


def test_a_marked_task_is_covered_with_a_warning_and_can_be_refused_for_good(house: House) -> None:
    tags = ["violence", "<b>self-harm"]
    project = house.work.project(0, sensitive_tags=tags)
    house.work.projects.add_tasks(project.id, _tagged(2, *tags, "de"), SOURCE)
    client = house.logged_in("Ann")
    task = post(client, f"/projects/{project.id}/next").headers["location"]
    page = client.get(task).text
    warning = page[page.index('class="warned"') :]
    assert "<bdi>violence</bdi>, <bdi>&lt;b&gt;self-harm</bdi>" in warning
    assert "de</bdi>" not in page
    assert '<input type="checkbox" id="uncover">' in page
    # All that the task says is inside what is covered.
    covered = re.sub(
        r'<section class="prompt covered".*?</section>|<div class="covered">.*?</fieldset>', "", page, flags=re.S
    )
    assert "Question 0?" in page
    assert "Answer a to 0." in page
    assert "Question 0?" not in covered
    assert "Answer a to 0." not in covered
    done = post(client, f"{task}/opt-out", page=task)
    assert done.headers["location"] == f"/projects/{project.id}?why=opted-out"
    assert "no more tasks of this kind" in client.get(done.headers["location"]).text
    assert post(client, f"/projects/{project.id}/next").headers["location"].endswith("?why=empty")
    (skipped,) = house.site.store.judgments()
    assert getattr(skipped.answer, "outcome", "") == "skip"
    assert house.site.projects.progress(project.id).num_skipped == 1
    # In the lists of answers, too, a marked prompt is shown only to who asks for it.
    for name, path in (("Ann", "answers"), ("Olga", "review")):
        listed = house.logged_in(name).get(f"/projects/{project.id}/{path}").text
        assert "<summary>The prompt, marked <bdi>violence</bdi>, <bdi>&lt;b&gt;self-harm</bdi></summary>" in listed
    # It is theirs to change, and nobody else's choice.
    assert 'value="violence" checked' in client.get("/account/content").text
    post(client, "/account/content", {"tag": "violence"}, page="/account/content")
    bob = house.logged_in("Bob")
    assert "checked" not in bob.get("/account/content").text
    assert post(bob, f"{task}/opt-out").status_code == 404
    with house.site.store.database.reading() as connection:
        ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
        assert opted_out(connection, ann.id) == ("violence",)


def test_a_task_without_marks_is_not_covered(house: House) -> None:
    project = house.work.project(1, break_minutes=45)
    client = house.logged_in("Ann")
    page = client.get(post(client, f"/projects/{project.id}/next").headers["location"]).text
    assert "covered" not in page
    assert "uncover" not in page
    assert 'data-break-minutes="45"' in page


def _ask(house: House, text: str = "We ask for your age to know who judged. Deleted after two years.") -> str:
    with house.site.store.database.writing() as connection:
        return people.publish_consent_text(connection, "demographics", "1", text, actor=audit.COMMAND_LINE).sha256


def _said(house: House) -> dict[str, dict[str, int]]:
    with house.site.store.database.reading() as connection:
        return people.demographics_by_attribute(connection)


ABOUT = "/account/about-you"


def test_nothing_is_asked_where_no_text_says_what_it_is_for(house: House) -> None:
    client = house.logged_in("Ann")
    assert "<fieldset" not in client.get(ABOUT).text
    post(client, ABOUT, {"age": "18 to 29", "agreed": "x"})
    assert _said(house) == {}


def test_every_question_is_optional_and_nothing_is_chosen_beforehand(house: House) -> None:
    _ask(house)
    client = house.logged_in("Ann")
    page = client.get(ABOUT).text
    assert "checked" not in page
    assert " required" not in page
    assert page.count(f'value="{NOT_SAID}"') == page.count("In your own words") == len(QUESTIONS)
    assert page.count("Kept as said above, or until you take it back.") == len(QUESTIONS)
    assert all(question.why in page for question in QUESTIONS)
    assert "Deleted after two years." in page
    blank = post(client, ABOUT, {f"{question.name}-words": "" for question in QUESTIONS}, page=ABOUT)
    assert (blank.status_code, "Nothing about you is kept." in blank.text) == (200, True)
    refused = {question.name: NOT_SAID for question in QUESTIONS}
    assert post(client, ABOUT, refused, page=ABOUT).status_code == 200
    assert _said(house) == {}


def test_answers_are_kept_apart_changed_and_taken_back(house: House) -> None:
    sha256 = _ask(house)
    client = house.logged_in("Ann")
    fields = {"age": "30 to 44", "gender": "woman", "gender-words": " a <i>woman\tof my own ", "region": NOT_SAID}
    without = post(client, ABOUT, fields, page=ABOUT)
    assert (without.status_code, "mark that you agree" in without.text) == (422, True)
    assert 'value="30 to 44" checked' in without.text
    assert _said(house) == {}
    kept = post(client, ABOUT, {**fields, "agreed": sha256}, page=ABOUT)
    assert "Kept: 2 of 5 answers" in kept.text
    # Own words single people out: what is counted and published is that they used their own.
    assert _said(house) == {"age": {"30 to 44": 1}, "gender": {"in own words": 1}}
    page = client.get(ABOUT).text
    assert 'value="30 to 44" checked' in page
    assert 'value="a &lt;i&gt;woman of my own"' in page
    assert page.count(" checked") == 1
    ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
    key = stored_demographics_key(house.site.store.secrets)
    with house.site.store.database.reading() as connection:
        assert key is not None
        assert people.demographics_of(connection, ann.id, key)["age"] == "30 to 44"
        assert not people.needs_consent(connection, ann.id, "demographics")
    assert "Deleted: 2 answers" in post(client, f"{ABOUT}/take-back", page=ABOUT).text
    assert _said(house) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"age": "150"}, "Choose one of the answers"), ({"age-words": "x" * (MAX_WORDS + 1)}, "at most 100 characters")],
)
def test_an_answer_that_the_form_cannot_send_is_refused(house: House, fields: dict[str, str], message: str) -> None:
    sha256 = _ask(house)
    found = post(house.logged_in("Ann"), ABOUT, {**fields, "agreed": sha256}, page=ABOUT)
    assert (found.status_code, message in found.text) == (422, True)
    assert _said(house) == {}


def test_own_words_form_one_group_in_what_is_published(store: FeedbackStore) -> None:
    key = read_demographics_key(demographics_key_path(store.secrets), create=True)
    with store.database.writing() as connection:
        for n in range(6):
            people.set_demographics(connection, f"p{n}", {"gender": f"in own words: {n}"}, key)
        assert people.demographics_by_attribute(connection) == {"gender": {"in own words": 6}}

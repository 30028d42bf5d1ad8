"""Reviewers see all finished work, with what was shown; annotators see their own only."""

import re
from pathlib import Path

from harken.config.project import DemonstrationTask, SpansTask
from harken.feedback.store import Given
from harken.records import DemonstrationAnswer, Spans
from tests.feedback.web_client import House
from tests.feedback.working import win


def test_all_finished_work_can_be_read_page_by_page(tmp_path: Path) -> None:
    house = House(tmp_path)
    ann, bob = house.work.people("Ann", "Bob")
    house.work.person("Rita", "reviewer")
    project = house.work.project(num_tasks=40, overlap=2)
    with house.site.store.database.writing(durable=False):
        for person in (ann, bob):
            for _ in range(40):
                lease = house.work.leases.claim(project.id, person.id)
                house.work.leases.submit(lease.id, person.id, win(lease, rationale=f"said {person.name}"))
    rita, client = house.logged_in("Rita"), house.logged_in("Ann")
    pages: list[str] = []
    path = f"/projects/{project.id}/review"
    while path:
        pages.append(rita.get(path).text)
        found = re.search(r'href="(/projects/[^"]*before=[^"]*)"', pages[-1])
        path = found.group(1) if found else ""
    own = client.get(f"/projects/{project.id}/answers").text
    house.close()
    assert [page.count("<article") for page in pages] == [50, 30]
    whole = "".join(pages)
    assert (whole.count("said Ann"), whole.count("said Bob")) == (40, 40)
    # The texts, in the order in which they were shown; all of them, each for two people.
    assert all(whole.count(f"<p>Answer {letter} to {number}.</p>") == 2 for letter in "ab" for number in range(40))
    assert (own.count("said Ann"), own.count("said Bob")) == (40, 0)
    assert "Answer 1 is better" in own


def test_long_texts_and_marks_can_be_read_in_whole(tmp_path: Path) -> None:
    house = House(tmp_path)
    (ann,) = house.work.people("Ann")
    house.work.person("Rita", "reviewer")
    written, marked = house.work.project(1, DemonstrationTask()), house.work.project(1, SpansTask())
    lease = house.work.leases.claim(written.id, ann.id)
    house.work.leases.submit(lease.id, ann.id, Given(DemonstrationAnswer(text="word " * 200 + "the end")))
    lease = house.work.leases.claim(marked.id, ann.id)
    name = lease.completions[0].id
    span = {"completion_id": name, "start": 7, "end": 8, "label": "factual", "severity": "major"}
    house.work.leases.submit(lease.id, ann.id, Given(Spans.model_validate({"spans": [span]})))
    client = house.logged_in("Rita")
    assert "the end" in client.get(f"/projects/{written.id}/review").text
    page = client.get(f"/projects/{marked.id}/review").text
    assert '<mark dir="auto">a</mark> factual, major' in page
    assert "1 error marked" in page
    house.close()

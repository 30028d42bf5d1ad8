"""Consent, own copy and withdrawal in the app."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harken.feedback.store import audit, people
from tests.feedback.web_client import House, post


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.work.people("Ann", "Bob")
    house.work.project()
    yield house
    house.close()


def _publish(house: House, version: str, text: str) -> None:
    with house.site.store.database.writing() as connection:
        people.publish_consent_text(connection, "participation", version, text, actor=audit.COMMAND_LINE)


def test_nobody_works_before_they_agreed_and_a_new_version_asks_again(house: House) -> None:
    client = house.logged_in("Ann")
    (project,) = house.work.projects.all()
    start = f"/projects/{project.id}/next"
    assert post(client, start).headers["location"].startswith("/tasks/")
    _publish(house, "1", "You may **stop** at any time. <script>")
    asked = post(client, start)
    assert asked.headers["location"] == "/consent?next=/"
    page = client.get("/consent?next=/account").text
    assert "<strong>stop</strong>" in page
    assert "<script>" not in page.partition("You may")[2]
    with house.site.store.database.reading() as connection:
        first = people.current_consent_text(connection, "participation")
    assert first is not None
    _publish(house, "2", "Other words.")
    # They saw the first; the second came while they read.
    stale = post(client, "/consent", {"sha256": first.sha256, "next": "/account"})
    assert (stale.status_code, "Other words." in stale.text) == (409, True)
    with house.site.store.database.reading() as connection:
        second = people.current_consent_text(connection, "participation")
    assert second is not None
    done = post(client, "/consent", {"sha256": second.sha256, "next": "//evil.example.org"})
    assert (done.status_code, done.headers["location"]) == (303, "/")
    lease = post(client, start).headers["location"]
    assert client.get(lease).status_code == 200
    # For scripts it is no redirection.
    _publish(house, "3", "Third.")
    assert client.get(lease, headers={"accept": "application/json"}).status_code == 403
    assert client.get(lease).headers["location"] == f"/consent?next={lease}"


def test_own_copy_and_withdrawal(house: House) -> None:
    client = house.logged_in("Ann")
    (project,) = house.work.projects.all()
    task = post(client, f"/projects/{project.id}/next").headers["location"]
    assert post(client, task, {"choice": "1-2"}, page=task).status_code == 303
    copy = json.loads(post(client, "/account/data").content)
    assert {"people", "leases", "judgments", "sessions"} <= set(copy)
    assert "argon2" not in json.dumps(copy)
    done = post(client, "/account/withdraw")
    assert "Your 1 answers are in no export" in done.text
    assert list(house.site.store.judgments()) == []
    with house.site.store.database.reading() as connection:
        assert [one.action for one in audit.entries(connection)][-2:] == ["self_export", "withdraw"]


def test_rights_need_a_session_and_a_form_of_the_app(house: House) -> None:
    visitor = house.client()
    for path in ("/account/data", "/account/withdraw", "/consent"):
        assert post(visitor, path, page="/login").status_code == 401
    client = house.logged_in("Ann")
    assert client.post("/account/withdraw").status_code == 403

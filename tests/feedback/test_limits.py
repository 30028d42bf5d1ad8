"""Whatever can be done too often is limited, and the answer says when to try again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harken.feedback.store import Accounts
from tests.feedback.test_web_chat import CONVERSATION, ChatHouse
from tests.feedback.web_client import ADDRESS, post, token

TURN = "0" * 32
# By the page: who, the path and what is sent. `LEASE` and `PROJECT` are put in by the test.
BY_PAGE = [
    ("Ann", "/tasks/LEASE", {"outcome": "answer", "choice": "1-1"}),
    ("Ann", "/tasks/LEASE/draft", {"rationale": "x"}),
    ("Ann", "/account/password", {"password": "x", "new_password": "y"}),
    ("Ann", "/account/data", {}),
    ("Ann", "/account/content", {}),
    ("Ann", "/account/about-you", {}),
    ("Ann", "/account/about-you/take-back", {}),
    ("Ann", "/tasks/LEASE/opt-out", {}),
    ("Ann", f"/chat/{CONVERSATION}/say", {"text": "hello"}),
    ("Ann", f"/chat/turns/{TURN}/vote", {"outcome": "unsure"}),
    ("Olga", "/manage/webhooks", {"url": "https://example.org/"}),
    ("Olga", "/manage/webhooks/none/test", {}),
]
BY_PROGRAM = [
    ("POST", "/api/v1/projects/PROJECT/claims"),
    ("GET", "/api/v1/projects/PROJECT/export/judgments"),
    ("POST", "/api/v1/claims/LEASE/judgment"),
]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ChatHouse]:
    house = ChatHouse(tmp_path)
    house.work.people("Ann")
    yield house
    house.close()


def _too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is counted has happened too often already; the next window is in 11.5 seconds."""
    monkeypatch.setattr(Accounts, "count", lambda self, name, window_s: (10**9, 11.5))


def test_every_limited_route_says_when_to_try_again(house: ChatHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    project = house.work.project()
    ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
    lease = house.work.leases.claim(project.id, ann.id)
    clients = {name: house.logged_in(name) for name in ("Ann", "Olga")}
    tokens = {name: token(client, "/account") for name, client in clients.items()}
    program = house.bearer("owner")
    _too_often(monkeypatch)
    answers = {}
    for name, path, fields in BY_PAGE:
        body = {"csrf": tokens[name], **fields}
        real = path.replace("LEASE", lease.id)
        answers[path] = clients[name].post(real, data=body, headers={"origin": ADDRESS})
    for method, path in BY_PROGRAM:
        real = path.replace("PROJECT", project.id).replace("LEASE", lease.id)
        answers[path] = program.request(method, real, json={"fields": {}} if method == "POST" else None)
    for path in ("/login", f"/join/{house.work.accounts.invite('annotator', ann)}"):
        answers[path] = post(house.client(), path, {"name": "Ann", "password": "x"}, page="/login")
    found = {path: (answer.status_code, answer.headers.get("retry-after")) for path, answer in answers.items()}
    assert found == dict.fromkeys(answers, (429, "12"))
    # Nothing was done: no answer, no account, and no model was asked.
    assert list(house.site.store.judgments()) == []
    assert {one.name for one in house.work.accounts.everyone() if not one.is_service} == {"Ann", "Olga"}
    assert house.models[0].asked == []


def test_a_burst_of_answers_is_stopped_and_loses_none(house: ChatHouse) -> None:
    project = house.work.project(num_tasks=1)
    ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
    lease = house.work.leases.claim(project.id, ann.id)
    client = house.logged_in("Ann")
    csrf = token(client, "/account")
    with house.site.store.database.writing(durable=False):
        for _ in range(300):
            house.site.accounts.count(house.site.keyed(f"submit {ann.id}"), 60)
    fields = {"csrf": csrf, "outcome": "answer", "choice": "1-1", "rationale": "my words"}
    codes = [client.post(f"/tasks/{lease.id}", data=fields, headers={"origin": ADDRESS}).status_code for _ in range(2)]
    # A minute may have ended in between; then the second is the same answer again.
    assert codes[0] == 429 or codes == [303, 303]
    kept = {one.rationale for one in house.site.store.judgments()}
    assert kept == ({"my words"} if 303 in codes else set())


def test_a_chat_is_limited_by_the_day_too(tmp_path: Path) -> None:
    house = ChatHouse(tmp_path, turns_a_minute=100, turns_a_day=3)
    house.work.people("Ann")
    client = house.logged_in("Ann")
    codes = [
        post(client, f"/chat/{number:016x}/say", {"text": "hello"}, accept="application/json").status_code
        for number in range(5)
    ]
    house.close()
    # Midnight may come in between.
    assert codes[:3] == [200] * 3
    assert 429 in codes[3:]

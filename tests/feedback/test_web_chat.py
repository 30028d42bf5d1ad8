"""The live chat's routes: who may do what, limits, moderation on both sides, and a vote that is stored once."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from harken.collecting import open_chat
from harken.config import ChatConfig, ComputeConfig, LiveChatConfig, ProjectConfig
from harken.feedback.live import ChatRoom, Moderate
from harken.feedback.names import Names
from harken.feedback.web.app import make_app
from harken.feedback.web.render import plain
from harken.records import Comparison, Message, SamplingSettings
from tests.feedback.scripted import Scripted
from tests.feedback.web_client import ADDRESS, House, post, token
from tests.tiny import make_tiny_model

CONVERSATION = "0123456789abcdef"


class ChatHouse(House):
    """An app with two scripted models."""

    def __init__(self, folder: Path, moderate: Moderate | None = None, **config: Any) -> None:
        super().__init__(folder)
        self.models = (
            Scripted("alpha-owl", lambda messages: f"Alpha says {messages[-1].content}."),
            Scripted("beta-fox", lambda messages: f"Beta says {messages[-1].content}."),
        )
        projects = self.work.projects
        project = projects.named("Live chat") or projects.make("Live chat", ProjectConfig())
        self.room = ChatRoom(
            self.models,
            project.id,
            LiveChatConfig(**config),
            names=Names([model.name for model in self.models]),
            moderate=moderate,
        )
        self.app = make_app(dataclasses.replace(self.site, chat=self.room))

    def close(self) -> None:
        self.room.close()
        super().close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ChatHouse]:
    house = ChatHouse(tmp_path)
    house.work.people("Ann", "Bob")
    yield house
    house.close()


def _say(client: TestClient, text: str, conversation: str = CONVERSATION) -> list[dict[str, Any]]:
    answer = post(client, f"/chat/{conversation}/say", {"text": text}, accept="text/event-stream")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def _texts(events: list[dict[str, Any]]) -> list[str]:
    return ["".join(one["html"] for one in events if one["event"] == "text" and one["side"] == side) for side in (1, 2)]


def _ends(events: list[dict[str, Any]]) -> dict[str, str]:
    return {
        f"seen-{side}": str(max(one["end"] for one in events if one["event"] == "text" and one["side"] == side))
        for side in (1, 2)
    }


def test_a_turn_is_streamed_blind_kept_and_voted_on_once(house: ChatHouse) -> None:
    client = house.logged_in("Ann")
    events = _say(client, "hello")
    turn = events[0]["id"]
    assert sorted(_texts(events)) == ["Alpha says hello.", "Beta says hello."]
    assert "alpha-owl" not in json.dumps(events)
    assert list(house.site.store.completions()) == []  # nothing is stored before it was read or voted on
    ends = _ends(events)
    assert post(client, f"/chat/turns/{turn}/keep", ends).json() == {"kept": turn}
    page = client.get(f"/chat/{CONVERSATION}").text
    assert "alpha-owl" not in page
    assert f'data-turn="{turn}"' in page
    vote = {**ends, "outcome": "answer", "choice": "2-3"}
    first = post(client, f"/chat/turns/{turn}/vote", vote).json()
    again = post(client, f"/chat/turns/{turn}/vote", vote).json()
    assert first == again
    other = post(client, f"/chat/turns/{turn}/vote", {**vote, "choice": "1-3"}, accept="application/json")
    assert other.status_code == 409
    (judgment,) = house.site.store.judgments()
    assert judgment.id == first["receipt"]
    texts = {one.id: one for one in house.site.store.completions()}
    assert [texts[one].message.content for one in judgment.shown] == _texts(events)
    assert first["names"] == [texts[one].model for one in judgment.shown]
    assert isinstance(judgment.answer, Comparison)
    assert judgment.answer.winner == judgment.shown[1]
    assert judgment.assignment is not None
    assert judgment.assignment.lease_id == turn
    # The next message goes on from the answer that was chosen.
    _say(client, "more")
    assert [one.content for one in house.models[0].asked[-1]] == ["hello", _texts(events)[1], "more"]


def test_a_vote_on_what_was_kept_works_after_a_restart(house: ChatHouse, tmp_path: Path) -> None:
    client = house.logged_in("Ann")
    events = _say(client, "hello")
    turn, ends = events[0]["id"], _ends(events)
    post(client, f"/chat/turns/{turn}/keep", ends)
    later = ChatHouse(tmp_path)
    try:
        client = later.logged_in("Ann")
        page = client.get(f"/chat/{CONVERSATION}").text
        assert all(text in page for text in _texts(events))
        assert post(client, f"/chat/turns/{turn}/vote", {"outcome": "both_bad"}).status_code == 200
        assert len(list(later.site.store.judgments())) == 1
    finally:
        later.close()


def test_what_was_not_seen_is_not_stored(house: ChatHouse) -> None:
    client = house.logged_in("Ann")
    events = _say(client, "hello")
    vote = {"seen-1": "5", "seen-2": "7", "outcome": "answer", "choice": "tie"}
    assert post(client, f"/chat/turns/{events[0]['id']}/vote", vote).status_code == 200
    (judgment,) = house.site.store.judgments()
    texts = {one.id: one for one in house.site.store.completions()}
    first, second = _texts(events)
    assert [texts[one].message.content for one in judgment.shown] == [first[:5], second[:7]]
    assert [texts[one].finish_reason for one in judgment.shown] == [None, None]


def test_reasons_of_a_vote_are_kept_whole_or_refused(house: ChatHouse) -> None:
    client = house.logged_in("Ann")
    events = _say(client, "hello")
    vote = {**_ends(events), "outcome": "answer", "choice": "tie"}
    path = f"/chat/turns/{events[0]['id']}/vote"
    refused = post(client, path, {**vote, "rationale": "x" * 20_001}, accept="application/json")
    assert (refused.status_code, "at most 20000 characters" in refused.json()["error"]) == (400, True)
    assert post(client, path, {**vote, "rationale": "x" * 20_000}).status_code == 200
    assert [one.rationale for one in house.site.store.judgments()] == ["x" * 20_000]


def test_nobody_else_sees_stops_or_votes_on_a_turn(house: ChatHouse) -> None:
    ann, bob = house.logged_in("Ann"), house.logged_in("Bob")
    events = _say(ann, "my secret")
    turn, ends = events[0]["id"], _ends(events)
    for action in ("keep", "vote"):
        answer = post(bob, f"/chat/turns/{turn}/{action}", {**ends, "outcome": "both_bad"}, accept="application/json")
        assert answer.status_code == 404
    assert post(bob, f"/chat/turns/{turn}/stop").json() == {"stopped": False}
    assert post(ann, f"/chat/turns/{turn}/keep", ends).status_code == 200
    assert "my secret" not in bob.get(f"/chat/{CONVERSATION}").text
    # Neither does the project hand it to another person.
    taken = post(bob, f"/projects/{house.room.project_id}/next")
    assert taken.headers["location"].endswith("why=empty")


def test_every_change_needs_the_token_and_the_origin(house: ChatHouse) -> None:
    client = house.logged_in("Ann")
    good = token(client, "/account")
    for path in (f"/chat/{CONVERSATION}/say", *(f"/chat/turns/{'0' * 32}/{one}" for one in ("stop", "keep", "vote"))):
        for fields, origin in (({}, ADDRESS), ({"csrf": good}, "https://evil.example")):
            assert client.post(path, data=fields, headers={"origin": origin}).status_code == 403
        assert house.client().post(path, data={}, headers={"origin": ADDRESS}).status_code == 403
    assert house.client().get("/chat").headers["location"].startswith("/login")
    assert client.get("/chat/nothing-of-ours").status_code == 404
    page = client.get(f"/chat/{CONVERSATION}")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "<script>" not in page.text


def test_an_app_without_models_has_no_chat(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.work.people("Ann")
    client = house.logged_in("Ann")
    assert client.get("/chat").status_code == 404
    assert 'href="/chat"' not in client.get("/").text
    house.close()


def test_two_models_of_our_own_answer(tmp_path: Path) -> None:
    house = ChatHouse(tmp_path)
    house.work.people("Ann")
    folders = [make_tiny_model(tmp_path / f"tiny-{seed}", seed=seed) for seed in (0, 1)]
    compute, settings = ComputeConfig(dtype="float32"), SamplingSettings(max_new_tokens=40)
    first, second = (open_chat(str(one), settings, chat=ChatConfig(), compute=compute) for one in folders)
    names = Names([str(one) for one in folders])
    room = ChatRoom((first, second), house.room.project_id, LiveChatConfig(), names=names)
    house.app = make_app(dataclasses.replace(house.site, chat=room))
    client = house.logged_in("Ann")
    events = _say(client, "hi")
    turn = events[0]["id"]
    assert [one["event"] for one in events].count("done") == 2
    answer = post(client, f"/chat/turns/{turn}/vote", {**_ends(events), "outcome": "answer", "choice": "1-0"})
    assert answer.status_code == 200, answer.text
    (judgment,) = house.site.store.judgments()
    records = {one.id: one for one in house.site.store.completions()}
    assert [plain(records[one].message.content) for one in judgment.shown] == _texts(events)
    assert {records[one].model for one in judgment.shown} == {str(one) for one in folders}
    room.close()
    house.close()


def test_limits_hold(tmp_path: Path) -> None:
    house = ChatHouse(tmp_path, turns_a_minute=2, max_message=20)
    house.work.people("Ann")
    client = house.logged_in("Ann")
    long = post(client, f"/chat/{CONVERSATION}/say", {"text": "x" * 21}, accept="application/json")
    assert (long.status_code, "20 characters" in long.json()["error"]) == (400, True)
    for number in range(2):
        _say(client, f"turn {number}", f"{number:016x}")
    often = post(client, f"/chat/{CONVERSATION}/say", {"text": "third"}, accept="application/json")
    assert often.status_code == 429
    assert int(often.headers["retry-after"]) > 0
    house.close()


def test_moderation_looks_at_both_sides(tmp_path: Path) -> None:
    house = ChatHouse(tmp_path, lambda text: "rude" if "damn" in text or "Beta says b" in text else None)
    house.work.people("Ann")
    client = house.logged_in("Ann")
    refused = post(client, f"/chat/{CONVERSATION}/say", {"text": "damn it"}, accept="application/json")
    assert (refused.status_code, "rude" in refused.json()["error"]) == (400, True)
    assert house.models[0].asked == []
    events = _say(client, "bad")
    failed = [one for one in events if one["event"] == "failed"]
    assert len(failed) == 1
    assert "held back" in failed[0]["message"]
    assert "Beta says" not in json.dumps(events)
    house.close()


def test_a_new_message_ends_the_old_turn_and_a_vote_waits_for_both(tmp_path: Path) -> None:
    house = ChatHouse(tmp_path)
    house.work.people("Ann")
    ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
    gate = threading.Event()
    house.models[1].gate = gate
    told: list[dict[str, Any]] = []
    turn = house.room.start(ann.id, CONVERSATION, _message("hello"), told.append)
    while not any(side.is_done for side in turn.sides):
        gate.wait(0.01)
    client = house.logged_in("Ann")
    early = {"seen-1": "0", "seen-2": "0", "outcome": "answer", "choice": "tie"}
    answer = post(client, f"/chat/turns/{turn.id}/vote", early, accept="application/json")
    assert (answer.status_code, "begun" in answer.json()["error"]) == (400, True)
    house.models[1].gate = None
    _say(client, "another")
    assert turn.stopped.is_set()
    assert house.room.turn(turn.id, ann.id) is None
    house.close()


def _message(text: str) -> Any:
    return (Message(role="user", content=text),)

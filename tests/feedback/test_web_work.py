"""Working in the app: from the first link to the export, each kind of task, and input that goes wrong."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from harken.config.project import CorrectionTask, RatingTask, TaskConfig
from harken.feedback.store import Lease
from harken.feedback.tasks import MAX_TEXT, TaskLine
from harken.feedback.web.kinds import BadForm, fill_form, make_answer
from harken.feedback.web.security import MAX_FIELD
from harken.feedback.web.site import STATIC
from harken.records import (
    Abstention,
    Comparison,
    Correction,
    DemonstrationAnswer,
    Judgment,
    RankingAnswer,
    RatedAxis,
    Rating,
    TurnRating,
)
from tests.feedback.web_client import ADDRESS, House, post, token
from tests.feedback.working import PASSWORD, lines

TASKS: dict[str, dict[str, object]] = {
    "comparison": {"kind": "comparison"},
    "rating": {"kind": "rating", "axes": [{"name": "true"}, {"name": "kind", "low": -2, "high": 2}]},
    "ranking": {"kind": "ranking"},
    "demonstration": {"kind": "demonstration"},
    "critique": {"kind": "critique"},
    "correction": {"kind": "correction"},
    "spans": {"kind": "spans", "labels": ["false", "rude"]},
}
FORMS: dict[str, list[dict[str, str]]] = {
    "comparison": [
        *({"choice": f"{side}-{strength}"} for side in (1, 2) for strength in range(4)),
        {"choice": "tie"},
    ],
    "rating": [{"axis-1": "1", "axis-2": "-2"}, {"axis-1": "5", "axis-2": "2"}],
    "ranking": [
        {"rank-1": "2", "rank-2": "1", "rank-3": "4", "rank-4": "3"},
        {"rank-1": "1", "rank-2": "1", "rank-3": "2", "rank-4": "2"},
    ],
    "demonstration": [{"text": "  two\nlines \u202e\U0001f600"}],
    "critique": [{"text": "wrong"}],
    "correction": [{"text": "Answer a to 0, mended."}],
    "spans": [{"spans": '[[0, 6, "false", "minor"], [3, 8, "rude", "critical"]]'}, {"spans": "[]"}],
}
BAD_FORMS: dict[str, list[dict[str, str]]] = {
    "comparison": [{}, {"choice": "3-1"}, {"choice": "1-9"}, {"choice": "1"}, {"outcome": "win"}],
    "rating": [{"axis-1": "1"}, {"axis-1": "6", "axis-2": "0"}, {"axis-1": "x", "axis-2": "0"}],
    "ranking": [{"rank-1": "1"}, {"rank-1": "0", "rank-2": "1", "rank-3": "1", "rank-4": "1"}],
    "demonstration": [{"text": " \n"}, {}],
    "critique": [{}],
    "correction": [{"text": ""}],
    "spans": [
        {"spans": "no"},
        {"spans": '[[5, 5, "false", "minor"]]'},
        {"spans": '[[0, 999, "false", "minor"]]'},
        {"spans": '[[0, 2, "odd", "minor"]]'},
        {"spans": '[[0, 2, "false", "odd"]]'},
    ],
}


def _start(house: House, kind: str, client: TestClient, num_tasks: int = 2) -> Lease:
    project = house.work.project(num_tasks, _task(kind))
    answer = post(client, f"/projects/{project.id}/next")
    assert answer.status_code == 303
    lease_id = answer.headers["location"].rpartition("/")[2]
    return house.work.leases.get(lease_id, _ann(house))


def _task(kind: str) -> TaskConfig:
    return TypeAdapter[TaskConfig](TaskConfig).validate_python(TASKS[kind])


def _ann(house: House) -> str:
    return next(one.id for one in house.work.accounts.everyone() if one.name == "Ann")


def _send(client: TestClient, lease: Lease, fields: dict[str, str]) -> Any:
    return post(client, f"/tasks/{lease.id}", {"outcome": "answer", **fields}, page=f"/tasks/{lease.id}")


def _last(house: House) -> Judgment:
    return list(house.work.store.judgments())[-1]


def test_from_the_first_link_to_the_export(tmp_path: Path) -> None:
    house = House(tmp_path)
    link = f"/join/{house.work.accounts.first_invitation()}"
    olga = house.client()
    assert post(olga, link, {"name": "Olga", "password": PASSWORD}, page=link).headers["location"] == "/manage"
    fields = {"name": "First", "kind": "comparison", "overlap": "1", "rationale": "optional", "guideline": "Be *fair*."}
    manage = post(olga, "/manage/projects", fields).headers["location"]
    content = "\n".join(json.dumps({"prompt": "Q?", "completions": [f"{n}a", f"{n}b"]}) for n in range(3))
    files = {"file": ("../../odd\x00name.jsonl", content.encode())}
    body = {"csrf": token(olga, "/account")}
    added = olga.post(f"{manage}/tasks", data=body, files=files, headers={"origin": ADDRESS})
    assert "3 tasks added" in added.text
    project = house.work.projects.all()[0]
    assert "Be <em>fair</em>." in olga.get(f"/projects/{project.id}").text
    where = post(olga, f"/projects/{project.id}/next").headers["location"]
    for number in range(3):
        page = olga.get(where)
        assert ("Saved." in page.text) == (number > 0)
        where = post(olga, where.split("?")[0], {"outcome": "answer", "choice": "2-3"}).headers["location"]
    assert where.endswith("?why=empty")
    assert "nothing to do" in olga.get(where).text
    assert olga.get(f"{manage}/progress.json").json()["num_done"] == 3
    manifest = house.work.store.export(tmp_path / "export")
    assert manifest.info["counts"] == {"prompts": 1, "completions": 6, "judgments": 3}
    for judgment in house.work.store.judgments():
        assert isinstance(judgment.answer, Comparison)
        assert judgment.answer.winner == judgment.shown[1]
        assert judgment.guideline.startswith("1:")
    house.close()


@pytest.mark.parametrize("kind", TASKS)
def test_each_kind_gives_the_answer_that_was_sent(house: House, kind: str) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, kind, client)
    replaces = ""
    for fields in FORMS[kind]:
        assert _send(client, lease, {**fields, "replaces": replaces}).status_code == 303
        judgment = _last(house)
        assert judgment.answer == make_answer(_task(kind), fields, lease.completions, lease.prompt)
        replaces = judgment.id
        # The form of the answer gives the answer again: what a person changes starts from what they said.
        shown = tuple(one.id for one in lease.completions)
        again = fill_form(_task(kind), judgment.answer, shown)
        assert make_answer(_task(kind), again, lease.completions, lease.prompt) == judgment.answer
    answers = [one.answer for one in house.work.store.judgments(include_superseded=True)]
    assert len(answers) == len(FORMS[kind])


@pytest.mark.parametrize("kind", TASKS)
def test_each_kind_can_be_left_without_an_answer(house: House, kind: str) -> None:
    client = house.logged_in("Ann")
    replaces = ""
    lease = _start(house, kind, client)
    for outcome in ("skip", "unsure", "both_bad"):
        fields = {"outcome": outcome, "flag_reason": "broken", "flag_note": "empty\r\nprompt", "replaces": replaces}
        assert _send(client, lease, fields).status_code == 303
        judgment = _last(house)
        replaces = judgment.id
        assert isinstance(judgment.answer, Comparison | Abstention)
        assert isinstance(judgment.answer, Comparison) == (kind == "comparison")
        assert judgment.answer.outcome == outcome
        assert [(flag.reason, flag.note) for flag in judgment.flags or ()] == [("broken", "empty\nprompt")]


@pytest.mark.parametrize("kind", TASKS)
def test_a_form_that_is_not_complete_comes_back_with_what_was_entered(house: House, kind: str) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, kind, client)
    for fields in BAD_FORMS[kind]:
        with pytest.raises(BadForm):
            make_answer(_task(kind), fields, lease.completions, lease.prompt)
        answer = _send(client, lease, {**fields, "rationale": "my <b>long</b> thought"})
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
        assert "my &lt;b&gt;long&lt;/b&gt; thought" in answer.text
    assert list(house.work.store.judgments()) == []


@pytest.mark.parametrize("kind", TASKS)
def test_each_kind_has_its_files(kind: str) -> None:
    assert (STATIC / "kinds" / f"{kind}.js").is_file()
    templates = STATIC.parent / "templates" / "kinds"
    assert (templates / f"{kind}.html.jinja").is_file()
    assert (templates / f"{kind}_keys.html.jinja").is_file()


def test_a_long_text_can_be_sent_in_any_script_and_one_that_is_too_long_is_told_so(house: House) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, "demonstration", client)
    answer = _send(client, lease, {"text": "x" * (MAX_TEXT + 1)})
    assert answer.status_code == 422
    assert f"{MAX_TEXT + 1} characters; at most {MAX_TEXT}" in answer.text
    long = "\u6f22" * 200_000  # as forms travel nine bytes a letter: more than the 1 MiB that frameworks take
    assert post(client, f"/tasks/{lease.id}/draft", {"text": long}).status_code == 200
    assert house.work.leases.get(lease.id, _ann(house)).draft == json.dumps({"text": long}, ensure_ascii=False)
    assert _send(client, lease, {"text": long}).status_code == 303
    found = _last(house).answer
    assert isinstance(found, DemonstrationAnswer)
    assert found.text == long
    # A text of that many letters fits whatever the script: at most four bytes, each sent as three.
    assert MAX_FIELD > 12 * MAX_TEXT


def test_what_no_page_sends_is_answered_in_words(house: House) -> None:
    answer = house.logged_in("Ann").put("/account", headers={"origin": ADDRESS})
    assert answer.status_code == 405
    assert "<p>Method Not Allowed.</p>" in answer.text


def test_ranks_lose_their_gaps_and_ties_may_be_forbidden(house: House) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, "ranking", client)
    _send(client, lease, {"rank-1": "4", "rank-2": "4", "rank-3": "2", "rank-4": "9"})
    answer = _last(house).answer
    assert isinstance(answer, RankingAnswer)
    assert [answer.ranks[one.id] for one in lease.completions] == [2, 2, 1, 3]
    strict = _task("ranking").model_copy(update={"ties": False})
    with pytest.raises(BadForm, match="same rank"):
        make_answer(strict, {"rank-1": "1", "rank-2": "1", "rank-3": "2", "rank-4": "3"}, lease.completions)


def test_ratings_keep_their_scale(house: House) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, "rating", client)
    _send(client, lease, {"axis-1": "3", "axis-2": "-2"})
    answer = _last(house).answer
    assert isinstance(answer, Rating)
    assert [(axis.value, axis.low, axis.high) for axis in answer.axes.values()] == [(3, 1, 5), (-2, -2, 2)]


def test_a_draft_comes_back(house: House) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, "comparison", client)
    fields = {"choice": "2-1", "rationale": "half a thought\x00\u202e", "flag_reason": "other"}
    saved = post(client, f"/tasks/{lease.id}/draft", fields).json()
    assert (saved["held"], saved["answered"]) == (True, False)
    page = client.get(f"/tasks/{lease.id}").text
    assert re.search(r'value="2-1" required checked', page)
    assert "half a thought" in page
    # A heartbeat keeps the draft.
    post(client, f"/tasks/{lease.id}/draft", {"keep_only": "1"})
    assert "half a thought" in client.get(f"/tasks/{lease.id}").text


def test_two_windows_and_a_double_click(house: House) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, "comparison", client)
    assert _send(client, lease, {"choice": "1-3"}).status_code == 303
    assert _send(client, lease, {"choice": "1-3"}).status_code == 303
    other = _send(client, lease, {"choice": "2-3"})
    assert (other.status_code, "answered this already" in other.text) == (409, True)
    assert len(list(house.work.store.judgments(include_superseded=True))) == 1


def test_changing_an_answer_shows_it_and_replaces_it(house: House) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, "comparison", client)
    _send(client, lease, {"choice": "1-3", "rationale": "first"})
    page = client.get(f"/tasks/{lease.id}").text
    assert re.search(r'value="1-3" required checked', page)
    assert "replaces your answer" in page
    found = re.search(r'name="replaces" value="(\w+)"', page)
    assert found
    _send(client, lease, {"choice": "tie", "replaces": found.group(1)})
    assert _last(house).supersedes == found.group(1)
    assert "Equally good" in client.get(f"/projects/{lease.project.id}/answers").text


def test_reasons_can_be_required(house: House) -> None:
    client = house.logged_in("Ann")
    project = house.work.project(2, rationale="required")
    path = post(client, f"/projects/{project.id}/next").headers["location"]
    assert post(client, path, {"outcome": "answer", "choice": "tie"}).status_code == 422
    assert post(client, path, {"outcome": "skip"}).status_code == 303


def test_odd_values_beside_the_answer(house: House) -> None:
    client = house.logged_in("Ann")
    lease = _start(house, "comparison", client, num_tasks=9)
    assert _send(client, lease, {"choice": "tie", "rationale": "x" * 20_001}).status_code == 422
    assert _send(client, lease, {"choice": "tie", "flag_reason": "odd"}).status_code == 422
    for text, expected in (("12.5", 12.5), ("-1", None), ("nan", None), ("1e9", None), ("99999999", None), ("", None)):
        assert _send(client, lease, {"choice": "tie", "active_s": text}).status_code == 303
        assert _last(house).timing.active_s == expected
        where = post(client, f"/projects/{lease.project.id}/next").headers["location"]
        lease = house.work.leases.get(where.rpartition("/")[2], _ann(house))


def test_owners_are_told_what_is_wrong_with_a_file(house: House) -> None:
    project = house.work.project(0)
    client = house.logged_in("Olga")
    body = {"csrf": token(client, "/account")}
    for content, problem in (
        (b"", "the file is empty"),
        (b'{"prompt": "Q", "completions": ["a"]}', "t.jsonl:1: 1 completions; a comparison has 2"),
        (b'\n{"prompt": "Q", "completions": ["a", "a"]}', "t.jsonl:2: two completions are the same"),
        (b'{"prompt": "Q", "completions": ["a", "b"], "overlay": 1}', "overlay"),
        (b"\xff\xfe", "bad JSON"),
        (b"[" * 100_000, "bad JSON"),
        (b'{"prompt": "Q\\u0000", "completions": ["a", "b"]}', "U+0000"),
        (b'{"prompt": "\\ud800", "completions": ["a", "b"]}', "t.jsonl:1"),
        (b'{"prompt": "Q", "completions": ["a", "b"], "gold": {"type": "comparison", "outcome": "win", '
         b'"winner": "z"}}', "gold"),
    ):  # fmt: skip
        path = f"/manage/projects/{project.id}/tasks"
        files = {"file": ("t.jsonl", content)}
        answer = client.post(path, data=body, files=files, headers={"origin": ADDRESS})
        assert (answer.status_code, problem in answer.text) == (422, True), (problem, answer.text)
    assert house.work.projects.progress(project.id).num_tasks == 0


def test_owners_change_roles_but_never_the_last_owner(house: House) -> None:
    client = house.logged_in("Olga")
    ann = _ann(house)
    olga = next(one.id for one in house.work.accounts.everyone() if one.name == "Olga")
    refused = post(client, f"/manage/people/{olga}", {"role": "annotator"})
    assert (refused.status_code, "no owner would be left" in refused.text) == (422, True)
    assert post(client, "/manage/people/invite", {"role": "king"}).status_code == 400
    watched = house.logged_in("Ann")
    assert post(client, f"/manage/people/{ann}", {"role": "annotator", "disabled": "on"}).status_code == 303
    assert watched.get("/").status_code == 303
    assert post(house.client(), "/login", {"name": "Ann", "password": PASSWORD}, page="/login").status_code == 401


def test_plain_lines_become_tasks() -> None:
    first, second = lines(2)
    assert first.prompt.messages[0].content == "Question 0?"
    assert first.task_id("p") != second.task_id("p")
    assert first.task_id("p") == lines(1)[0].task_id("p")


def test_turns_of_a_conversation_are_rated_one_by_one_or_as_a_whole() -> None:
    said = [("user", "Hi"), ("assistant", "Hello."), ("user", "More?"), ("assistant", "Yes."), ("user", "Go on.")]
    prompt = [{"role": role, "content": text} for role, text in said]
    line = TaskLine.model_validate({"prompt": prompt, "completions": ["The end."]})
    fields = {"turn-1-axis-1": "2", "turn-3-axis-1": "4", "axis-1": "5"}
    axes = {value: {"quality": RatedAxis(value=value, low=1, high=5)} for value in (2, 4, 5)}
    turns = (TurnRating(message=1, axes=axes[2]), TurnRating(message=3, axes=axes[4]))
    expected = {
        "completion": Rating(axes=axes[5]),
        "turns": Rating(axes=axes[5], turns=turns),
        "conversation": Rating(axes=axes[5], scope="conversation"),
    }
    for scope, answer in expected.items():
        task = RatingTask.model_validate({"scope": scope})
        assert make_answer(task, fields, line.completions, line.prompt) == answer
        form = fill_form(task, answer, ())
        assert make_answer(task, form, line.completions, line.prompt) == answer
        assert Rating.model_validate_json(answer.model_dump_json(exclude_none=True)) == answer
    del fields["turn-3-axis-1"]
    with pytest.raises(BadForm, match="of answer 2"):
        make_answer(RatingTask(scope="turns"), fields, line.completions, line.prompt)


def test_a_text_nobody_edited_is_no_correction_whatever_its_line_ends() -> None:
    line = TaskLine.model_validate({"prompt": "Q", "completions": ["one\r\ntwo\rthree"]})
    for sent, stored in (
        ("one\r\ntwo\r\nthree", "one\r\ntwo\rthree"),
        ("one\r\ntwo\r\nfour", "one\ntwo\nfour"),
    ):
        answer = make_answer(CorrectionTask(), {"text": sent}, line.completions, line.prompt)
        assert isinstance(answer, Correction)
        assert answer.text == stored

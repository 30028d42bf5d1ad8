"""The REST API: what programs can do with a token, what they are told when it goes wrong, and what they never learn."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from harken.feedback.store import audit
from harken.feedback.store import tokens as tokens_module
from harken.feedback.store.people import withdraw
from harken.feedback.store.people_tables import exports
from harken.records import Comparison, Completion, Judgment, Prompt
from tests.feedback.web_client import ADDRESS, House, post
from tests.feedback.working import SOURCE, lines, win

V1 = "/api/v1"
TASK = {"prompt": "Which?", "completions": ["this", "that"]}


def _take(client: TestClient, project_id: str) -> dict[str, object]:
    answer = client.post(f"{V1}/projects/{project_id}/claims")
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_from_a_project_to_its_export(house: House) -> None:
    owner, judge = house.bearer("owner"), house.bearer()
    config = {"task": {"kind": "comparison"}, "overlap": 1}
    made = owner.post(f"{V1}/projects", json={"name": "by program", "config": config, "guideline": "Be fair."})
    assert made.status_code == 201, made.text
    base = f"{V1}/projects/{made.json()['id']}"
    body = {"tasks": [TASK, {**TASK, "prompt": "What?"}]}
    assert owner.post(f"{base}/tasks", json=body).json() == {"num_added": 2, "num_already_there": 0}
    assert owner.post(f"{base}/tasks", json=body).json() == {"num_added": 0, "num_already_there": 2}
    claim = judge.post(f"{base}/claims").json()
    assert claim["guideline"] == "Be fair."
    assert judge.post(f"{base}/claims").json()["id"] == claim["id"]
    good = next(one["place"] for one in claim["completions"] if one["text"] == "this")
    handed = {"fields": {"choice": f"{good}-3"}, "rationale": "clear", "active_s": 2.5}
    answer = judge.post(f"{V1}/claims/{claim['id']}/judgment", json=handed)
    assert answer.status_code == 201, answer.text
    assert judge.post(f"{V1}/claims/{claim['id']}/judgment", json=handed).json() == answer.json()
    other = judge.post(f"{V1}/claims/{claim['id']}/judgment", json={"fields": {"choice": "tie"}})
    assert (other.status_code, "answered this already" in other.json()["error"]) == (409, True)
    assert owner.get(f"{base}/progress").json()["num_done"] == 1
    assert [one["num_done"] for one in owner.get(f"{base}/tasks").json()] == [1, 0]
    assert len(owner.get(f"{base}/tasks", params={"after": 0}).json()) == 1
    read = {
        what: owner.get(f"{base}/export/{what}").text.splitlines() for what in ("judgments", "completions", "prompts")
    }
    (judgment,) = [Judgment.model_validate_json(line) for line in read["judgments"]]
    texts = {one.id: one.message.content for one in map(Completion.model_validate_json, read["completions"])}
    assert isinstance(judgment.answer, Comparison)
    assert judgment.answer.winner is not None
    assert (texts[judgment.answer.winner], judgment.answer.strength) == ("this", 3)
    assert [texts[name] for name in judgment.shown] == [one["text"] for one in claim["completions"]]
    assert (judgment.id, judgment.rationale, judgment.timing.active_s) == (answer.json()["judgment_id"], "clear", 2.5)
    assert len([Prompt.model_validate_json(line) for line in read["prompts"]]) == 2


def test_a_changed_answer_supersedes_and_the_newest_is_exported(house: House) -> None:
    project = house.work.project(1)
    judge, owner = house.bearer(), house.bearer("owner")
    claim = _take(judge, project.id)
    url = f"{V1}/claims/{claim['id']}/judgment"
    first = judge.post(url, json={"fields": {"choice": "tie"}}).json()["judgment_id"]
    second = judge.post(url, json={"fields": {"choice": "1-2"}, "replaces": first}).json()["judgment_id"]
    exported = owner.get(f"{V1}/projects/{project.id}/export/judgments").text.splitlines()
    (judgment,) = map(Judgment.model_validate_json, exported)
    assert (judgment.id, judgment.supersedes) == (second, first)


def test_nothing_to_do_says_why(house: House) -> None:
    project = house.work.project(1)
    judge = house.bearer()
    claim = _take(judge, project.id)
    judge.post(f"{V1}/claims/{claim['id']}/judgment", json={"fields": {"outcome": "unsure"}})
    answer = judge.post(f"{V1}/projects/{project.id}/claims")
    assert (answer.status_code, answer.json()) == (409, {"error": "nothing to do here: empty"})


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"prompt": "Q", "completions": ["a"]}]}, "tasks[0]: 1 completions; a comparison has 2"),
        ({"tasks": [TASK, {**TASK, "overlay": 1}]}, "overlay"),
        ({"tasks": [{**TASK, "qualifies": True}]}, "right answer"),
        ({}, "tasks"),
        ([], "body"),
    ],
)
def test_bad_tasks_are_refused_whole(house: House, body: object, part: str) -> None:
    project = house.work.project(0)
    answer = house.bearer("owner").post(f"{V1}/projects/{project.id}/tasks", json=body)
    assert answer.status_code in (400, 422)
    assert part in answer.json()["error"]
    assert house.work.projects.progress(project.id).num_tasks == 0


def test_bodies_that_are_no_json_and_too_deep_ones(house: House) -> None:
    owner = house.bearer("owner")
    headers = {"content-type": "application/json"}
    for content in (b"{", b"[" * 100_000, b"\xff\xfe", b'{"name": "\\ud800"}'):
        answer = owner.post(f"{V1}/projects", content=content, headers=headers)
        assert answer.status_code in (400, 422), answer.text
        assert set(answer.json()) == {"error"}
    config = {"name": "x", "config": {"overlay": 2}}
    assert "overlap" in owner.post(f"{V1}/projects", json=config).json()["error"]


def test_tokens_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in ("revoked", "expired", "closed"):
        program = house.bearer()
        assert program.get(f"{V1}/me").status_code == 200
        token = house.site.tokens.all()[0]
        owner = house.work.accounts.everyone()[1]
        if end == "revoked":
            house.site.tokens.revoke(token.id, owner)
        elif end == "closed":
            house.work.accounts.change(token.person.id, owner, role="annotator", disabled=True)
        with monkeypatch.context() as later:
            if end == "expired":
                later.setattr(tokens_module, "time", SimpleNamespace(time=lambda: time.time() + 91 * 86400))
            answer = program.get(f"{V1}/me")
            assert answer.status_code == 401, end
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer x", "Basic eDp4", "harken_x", "Bearer harken_" + "x" * 5000]
)
def test_what_is_no_token_opens_nothing(house: House, header: str) -> None:
    answer = house.client().get(f"{V1}/me", headers={"authorization": header})
    assert (answer.status_code, set(answer.json())) == (401, {"error"})


def test_a_token_is_shown_once_and_kept_as_a_hash(house: House) -> None:
    olga = house.logged_in("Olga")
    page = post(olga, "/manage/tokens", {"name": "nightly", "role": "reviewer", "days": "7"}).text
    token = page.partition('<code class="copy">')[2].partition("<")[0]
    assert token.startswith("harken_")
    again = olga.get("/manage/tokens").text
    assert "nightly" in again
    assert token not in again
    found = house.client().get(f"{V1}/me", headers={"authorization": f"Bearer {token}"}).json()
    assert found == {"name": "nightly", "role": "reviewer", "project_id": None}
    files = b"".join(path.read_bytes() for path in house.site.store.path.parent.glob("f.db*"))
    assert token.encode() not in files
    # A second token of the same account goes on as the same judge.
    account = house.site.tokens.all()[0].person.id
    post(olga, "/manage/tokens", {"name": "again", "role": "owner", "account_id": account})
    newest = house.site.tokens.all()[0]
    assert (newest.person.id, newest.person.role) == (account, "reviewer")
    for fields in ({"days": "367"}, {"days": "x"}, {"name": "Ann"}, {"account_id": "none"}, {"project_id": "none"}):
        bad = post(olga, "/manage/tokens", {"name": "other", "role": "owner", **fields})
        assert (bad.status_code, 'role="alert"' in bad.text) == (422, True), fields


def test_programs_are_no_owners_that_could_let_others_in(house: House) -> None:
    house.bearer("owner")
    olga = next(one for one in house.work.accounts.everyone() if one.name == "Olga")
    client = house.logged_in("Olga")
    assert "no owner would be left" in post(client, f"/manage/people/{olga.id}", {"role": "annotator"}).text


def test_a_claim_says_nothing_of_models_gold_or_ids(house: House) -> None:
    project = house.work.project(0)
    about = {"prompt_id": "q", "model": "secret-model"}
    texts = [{"role": "assistant", "content": text} for text in "ab"]
    task = {
        "prompt": {"id": "q", "messages": [{"role": "user", "content": "Q"}]},
        "tags": ["secret-tag"],
        "gold": {"type": "comparison", "outcome": "win", "winner": "secret-1"},
        "completions": [{"id": f"secret-{n}", "message": text, **about} for n, text in enumerate(texts)],
    }
    added = house.bearer("owner").post(f"{V1}/projects/{project.id}/tasks", json={"tasks": [task]})
    assert added.status_code == 201, added.text
    judge = house.bearer()
    claim = judge.post(f"{V1}/projects/{project.id}/claims")
    told = [claim, judge.get(f"{V1}/claims/{claim.json()['id']}")]
    told.append(judge.post(f"{V1}/claims/{claim.json()['id']}/heartbeat"))
    told.append(judge.post(f"{V1}/claims/{claim.json()['id']}/judgment", json={"fields": {"choice": "1-1"}}))
    for answer in told:
        assert answer.status_code < 300
        assert "secret" not in answer.text + str(answer.headers)
        assert "gold" not in answer.text


def test_the_export_leaves_out_who_withdrew_and_is_noted(house: House) -> None:
    project = house.work.project(1, overlap=2)
    ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
    lease = house.work.leases.claim(project.id, ann.id)
    house.work.leases.submit(lease.id, ann.id, win(lease))
    owner = house.bearer("owner")
    url = f"{V1}/projects/{project.id}/export/judgments"
    assert len(owner.get(url).text.splitlines()) == 1
    with house.site.store.database.writing() as connection:
        withdraw(connection, ann.id, "participation", None, actor="command line")
    assert owner.get(url).text == ""
    with house.site.store.database.reading() as connection:
        noted = [entry.facts for entry in audit.entries(connection) if entry.action == "export"]
        folders = connection.execute(select(exports.c.folder)).scalars().all()
    assert noted == [{"project": project.id, "judgments": 1}] * 2
    assert all(folder.startswith("sent over the API to program") for folder in folders)
    assert owner.get(f"{V1}/projects/{project.id}/export/people").status_code == 422


def test_an_export_is_whole_over_many_pieces(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken.feedback.store.streams._CHUNK", 2)
    project = house.work.project(5)
    house.work.projects.add_tasks(project.id, lines(3, pool="later"), SOURCE)
    owner = house.bearer("owner")
    for what, expected in (("prompts", 5), ("completions", 10)):
        found = owner.get(f"{V1}/projects/{project.id}/export/{what}").text.splitlines()
        assert len(found) == len(set(found)) == expected


def test_the_schema_describes_the_api_and_no_page(house: House) -> None:
    schema = house.client().get("/api/openapi.json").json()
    api = {(method, path) for method, path in house.routes() if path.startswith(V1)}
    assert {(method.upper(), path) for path, found in schema["paths"].items() for method in found} == api
    assert all(
        one.get("description") or one.get("summary") for found in schema["paths"].values() for one in found.values()
    )


def test_requests_are_limited_across_processes(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken.feedback.web.api.MAX_A_MINUTE", 10)
    other = House(tmp_path, f"sqlite:///{house.site.store.path}")
    program = house.bearer()
    beside = other.client()
    beside.headers["authorization"] = program.headers["authorization"]
    answers = [(program if number % 2 else beside).get(f"{V1}/me") for number in range(22)]
    other.close()
    codes = [answer.status_code for answer in answers]
    # A minute may have ended in between; then one of the two had 11 requests or more.
    assert codes[:10] == [200] * 10
    assert 429 in codes
    late = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(late.headers["retry-after"]) <= 61


def test_guessing_tokens_is_limited(house: House) -> None:
    codes = [
        house.client().get(f"{V1}/me", headers={"authorization": f"Bearer harken_{n}"}).status_code for n in range(122)
    ]
    assert set(codes) == {401, 429}


def test_other_sites_get_no_leave_to_read(house: House) -> None:
    answer = house.bearer("owner").get(f"{V1}/me", headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = house.client().options(f"{V1}/me", headers={"origin": ADDRESS, "access-control-request-method": "GET"})
    assert preflight.status_code == 405

"""Every route against every kind of visitor: a new route without a line in the table fails here."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from harken.feedback.store import Person
from harken.feedback.web.security import API, SAFE_METHODS, csrf_token
from tests.feedback.routes import LEAST, ROLES
from tests.feedback.web_client import ADDRESS, House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.work.people("Ann")
    house.work.person("Rita", "reviewer")
    house.work.project(9, overlap=9)
    yield house
    house.close()


def _person(house: House, role: str) -> Person:
    return next(one for one in house.work.accounts.everyone() if one.role == role and not one.is_service)


def _visitor(house: House, role: str) -> tuple[TestClient, str]:
    """Somebody in a fresh session, as some routes end it, and the token of their forms."""
    client = house.client()
    cookie = house.work.accounts.log_in(_person(house, role)) if role else "planted"
    client.cookies.set(house.site.cookie, cookie)
    return client, csrf_token(cookie)


def _path(house: House, path: str, lease_id: str) -> str:
    project = house.work.projects.all()[0]
    task = house.site.streams.tasks(project.id, -1, 1)[0]
    values = {"project_id": project.id, "lease_id": lease_id, "claim_id": lease_id, "task_id": task.id}
    values |= dict.fromkeys(("person_id", "token", "token_id", "webhook_id"), "none") | {"what": "judgments"}
    return re.sub(r"{(\w+)}", lambda found: values[found.group(1)], path)


def _may(role: str, least: str) -> bool:
    return least == "open" or (role in ROLES and ROLES.index(role) >= ROLES.index(least))


def test_the_table_knows_every_route(house: House) -> None:
    assert set(LEAST) == set(house.routes())


@pytest.mark.parametrize("role", ["", *ROLES])
def test_each_role_reaches_its_pages_and_no_others(house: House, role: str) -> None:
    project_id = house.work.projects.all()[0].id
    lease_id = house.work.leases.claim(project_id, _person(house, role).id).id if role else "none"
    for (method, path), least in LEAST.items():
        if path.startswith(API):
            continue
        client, csrf = _visitor(house, role)
        body = None if method == "GET" else {"csrf": csrf}
        answer = client.request(method, _path(house, path, lease_id), data=body, headers={"origin": ADDRESS})
        if _may(role, least):
            # A wrong password is no lack of rights.
            allowed = (401,) if (method, path) == ("POST", "/login") else ()
            assert answer.status_code not in {401, 403, 500} - set(allowed), (role, method, path, answer.text)
            assert not answer.headers.get("location", "").startswith("/login?"), (role, path)
        elif role:
            assert answer.status_code == 403, (role, method, path)
        else:
            sent = (answer.status_code, answer.headers.get("location", "")[:7])
            assert sent == ((303, "/login?") if method == "GET" else (401, "")), (method, path)


@pytest.mark.parametrize("role", ["", *ROLES])
def test_each_token_opens_its_endpoints_and_no_others(house: House, role: str) -> None:
    client = house.bearer(role) if role in ROLES else house.client()  # pyright: ignore[reportArgumentType]
    project_id = house.work.projects.all()[0].id
    claim_id = client.post(f"/api/v1/projects/{project_id}/claims").json().get("id", "none")
    for (method, path), least in LEAST.items():
        if not path.startswith(API):
            continue
        answer = client.request(method, _path(house, path, claim_id), json=None if method == "GET" else {})
        if _may(role, least):
            assert answer.status_code in (200, 201, 400, 422), (role, method, path, answer.text)
        else:
            assert answer.status_code == (403 if role else 401), (role, method, path, answer.text)
            assert set(answer.json()) == {"error"}


def test_a_token_opens_no_page_and_a_cookie_no_endpoint(house: House) -> None:
    token = house.bearer("owner")
    client, csrf = _visitor(house, "owner")
    for (method, path), least in LEAST.items():
        if least == "open":
            continue
        real = _path(house, path, "none")
        if path.startswith(API):
            headers = {"origin": ADDRESS, "x-csrf-token": csrf}
            answer = client.request(method, real, headers=headers, json=None if method == "GET" else {})
            assert answer.status_code == 401, (method, path)
        else:
            headers = {"origin": ADDRESS, "accept": "application/json"}
            answer = token.request(method, real, headers=headers)
            assert answer.status_code == (401 if method in SAFE_METHODS else 403), (method, path)


def test_every_change_by_a_page_needs_the_sessions_own_form(house: House) -> None:
    unsafe = [path for method, path in house.routes() if method not in SAFE_METHODS and not path.startswith(API)]
    assert len(unsafe) >= 20
    client, good = _visitor(house, "owner")
    _, foreign = _visitor(house, "reviewer")
    assert good != foreign
    for path in unsafe:
        real = _path(house, path, "none")
        for fields, headers in (
            ({}, {"origin": ADDRESS}),
            ({"csrf": foreign}, {"origin": ADDRESS}),
            ({"csrf": good}, {"origin": "https://evil.example"}),
            ({"csrf": good}, {"origin": "null"}),
            ({"csrf": good}, {}),
        ):
            assert client.post(real, data=fields, headers=headers).status_code == 403, (path, fields, headers)
    assert client.get("/account").status_code == 200


def test_ids_of_others_open_nothing(house: House) -> None:
    project = house.work.projects.all()[0]
    lease_id = house.work.leases.claim(project.id, _person(house, "annotator").id).id
    for role in ROLES:
        program = house.bearer(role)  # pyright: ignore[reportArgumentType]
        for method, path in LEAST:
            if "{claim_id}" in path:
                answer = program.request(method, _path(house, path, lease_id), json=None if method == "GET" else {})
                assert answer.status_code == 404, (role, path)
        if role != "annotator":
            client, csrf = _visitor(house, role)
            for method, path in LEAST:
                if "{lease_id}" in path:
                    body = None if method == "GET" else {"csrf": csrf}
                    real = _path(house, path, lease_id)
                    assert client.request(method, real, data=body, headers={"origin": ADDRESS}).status_code == 404


def test_a_token_of_one_project_opens_no_other(house: House) -> None:
    own, other = house.work.projects.all()[0], house.work.project()
    for role in ROLES:
        program = house.bearer(role, project_id=own.id)  # pyright: ignore[reportArgumentType]
        assert [one["id"] for one in program.get("/api/v1/projects").json()] == [own.id]
        for (method, path), least in LEAST.items():
            if "{project_id}" in path and path.startswith(API) and _may(role, least):
                real = _path(house, path.replace("{project_id}", other.id), "none")
                body = {"tasks": [{"prompt": "Q", "completions": ["a", "b"]}]} if method == "POST" else None
                assert program.request(method, real, json=body).status_code == 403, (role, path)
    assert house.bearer("owner", project_id=own.id).post("/api/v1/projects", json={"name": "x"}).status_code == 403

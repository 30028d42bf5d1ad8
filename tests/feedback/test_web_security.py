"""Security of the app: forged requests, roles, sessions, limits, headers, hostile text."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from harken.errors import DataError, UsageError
from harken.feedback.store import accounts as accounts_module
from harken.feedback.store import audit, people
from harken.feedback.web.render import plain, rich
from harken.feedback.web.security import API, CSP
from harken.feedback.web.site import check_address, read_secret
from tests.feedback.routes import pages_for
from tests.feedback.web_client import ADDRESS, House, post
from tests.feedback.working import PASSWORD, SOURCE, lines


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.work.people("Ann", "Bob")
    house.work.person("Rita", "reviewer")
    yield house
    house.close()


def _routes(house: House) -> list[tuple[str, str]]:
    """Routes of pages; those for programs, which cookies do not open, are in test_route_matrix.py."""
    return [(method, path) for method, path in house.routes() if not path.startswith(API)]


def _real(house: House, path: str, lease_id: str) -> str:
    project = house.work.projects.all()[0]
    ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
    values = {"project_id": project.id, "lease_id": lease_id, "person_id": ann.id, "token": "none"}
    values |= {"token_id": "none", "webhook_id": "none"}
    return re.sub(r"{(\w+)}", lambda found: values[found.group(1)], path)


def _lease_of(house: House, name: str) -> str:
    person = next(one for one in house.work.accounts.everyone() if one.name == name)
    return house.work.leases.claim(house.work.projects.all()[0].id, person.id).id


def _all_agree(house: House) -> None:
    """Publish a consent text, without which its page has nothing to show."""
    with house.site.store.database.writing() as connection:
        asked = people.publish_consent_text(connection, "participation", "1", "Yes?", actor=audit.COMMAND_LINE)
        for person in house.work.accounts.everyone():
            people.give_consent(connection, person.id, asked)


def test_each_role_sees_its_pages_and_no_others(house: House) -> None:
    house.work.project()
    _all_agree(house)
    pages = {path for method, path in _routes(house) if method == "GET"} - pages_for("open")
    allowed: set[str] = set()
    names = {"annotator": "Ann", "reviewer": "Rita", "owner": "Olga"}
    visitor = house.client()
    for role, name in names.items():
        allowed |= pages_for(role)
        client = house.logged_in(name)
        lease_id = _lease_of(house, name)
        for path in pages:
            expected = 200 if path in allowed else 403
            assert client.get(_real(house, path, lease_id)).status_code == expected, (role, path)
            answer = visitor.get(_real(house, path, lease_id))
            assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")


def test_changes_of_owners_are_refused_to_others(house: House) -> None:
    house.work.project()
    paths = [path for method, path in _routes(house) if method == "POST" and path.startswith("/manage")]
    assert len(paths) >= 6
    for name in ("Ann", "Rita"):
        client = house.logged_in(name)
        for path in paths:
            answer = post(client, _real(house, path, ""), {"role": "owner", "state": "closed"})
            assert answer.status_code == 403, (name, path)
    assert all(project.is_open for project in house.work.projects.all())


def test_nobody_reaches_the_task_of_another(house: House) -> None:
    house.work.project()
    lease_id = _lease_of(house, "Ann")
    bob = house.logged_in("Bob")
    assert bob.get(f"/tasks/{lease_id}").status_code == 404
    assert post(bob, f"/tasks/{lease_id}", {"choice": "1-3", "outcome": "answer"}).status_code == 404
    assert post(bob, f"/tasks/{lease_id}/draft", {"rationale": "x"}).status_code == 404
    unknown = bob.get("/tasks/none")
    assert unknown.text == bob.get(f"/tasks/{lease_id}").text


def test_every_page_has_the_strict_policy_and_no_inline_code(house: House) -> None:
    _all_agree(house)
    house.work.project()
    client = house.logged_in("Olga")
    lease_id = _lease_of(house, "Olga")
    pages = [_real(house, path, lease_id) for method, path in _routes(house) if method == "GET"]
    for path in [*pages, "/none", "/static/none", "/static/task.js", "/tasks/none"]:
        answer = client.get(path)
        assert answer.headers["content-security-policy"] == CSP, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        if answer.headers["content-type"].startswith("text/html"):
            assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", answer.text), path
            assert not re.search(r'(?:src|href|action)="(?!/(?!/)|#main)', answer.text), path


def test_cookies_are_closed_to_scripts_and_other_sites(house: House) -> None:
    client = house.client()
    client.get("/login")
    planted = client.cookies["__Host-harken"]
    answer = post(client, "/login", {"name": "Ann", "password": PASSWORD}, page="/login")
    cookie = answer.headers["set-cookie"]
    for flag in ("__Host-harken=", "HttpOnly", "SameSite=lax", "Secure", "Path=/"):
        assert flag in cookie
    assert "Domain" not in cookie
    # Log-in gives a new session: one that was planted before stays worthless.
    assert planted not in cookie
    thief = house.client()
    thief.cookies.set("__Host-harken", planted)
    assert thief.get("/account").status_code == 303


def test_sessions_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = house.logged_in("Ann"), house.logged_in("Ann")
    post(first, "/logout")
    assert (first.get("/").status_code, second.get("/").status_code) == (303, 200)
    post(second, "/account/log-out-everywhere")
    assert second.get("/").status_code == 303
    fourth, fifth = house.logged_in("Ann"), house.client()
    ann = next(one for one in house.work.accounts.everyone() if one.name == "Ann")
    fifth.cookies.set("__Host-harken", house.work.accounts.log_in(ann))
    assert fifth.get("/").status_code == 200
    fields = {"password": PASSWORD, "new_password": "another horse"}
    assert post(fourth, "/account/password", fields).status_code == 303
    assert (fourth.get("/").status_code, fifth.get("/").status_code) == (200, 303)
    # However busy a session is, it ends a week after log-in; one that nobody uses ends earlier.
    for name in ("SESSION_MAX_S", "SESSION_IDLE_S"):
        with monkeypatch.context() as later:
            later.setattr(accounts_module, name, -1.0)
            assert fourth.get("/").status_code == 303
        assert fourth.get("/").status_code == 200


def test_tokens_and_passwords_are_not_in_the_store(house: House) -> None:
    client = house.logged_in("Ann")
    invitation = house.work.accounts.invite("annotator", house.work.accounts.everyone()[2])
    house.site.store.close()
    content = b"".join(path.read_bytes() for path in house.site.store.path.parent.glob("f.db*"))
    for secret in (client.cookies["__Host-harken"], PASSWORD, invitation):
        assert secret.encode() not in content
    assert b"$argon2id$" in content


def test_an_invitation_works_once(house: House) -> None:
    olga = house.logged_in("Olga")
    page = post(olga, "/manage/people/invite", {"role": "annotator"}).text
    found = re.search(rf"{ADDRESS}(/join/[\w-]+)", page)
    assert found
    link = found.group(1)
    guest = house.client()
    short = post(guest, link, {"name": "Zoe", "password": "short"}, page=link)
    assert (short.status_code, "10 to" in short.text) == (422, True)
    taken = post(guest, link, {"name": "ANN", "password": PASSWORD}, page=link)
    assert "is taken" in taken.text
    assert post(guest, link, {"name": "Zoe", "password": PASSWORD}, page=link).status_code == 303
    assert guest.get("/").status_code == 200
    assert house.client().get(link).status_code == 404


def test_logging_in_is_limited_across_processes(house: House, tmp_path: Path) -> None:
    other = House(tmp_path, f"sqlite:///{house.site.store.path}")
    codes: list[int] = []
    for number in range(12):
        client = (house if number % 2 else other).client()
        answer = post(client, "/login", {"name": "Ann", "password": "wrong horse"}, page="/login")
        codes.append(answer.status_code)
    other.close()
    assert codes[:5] == [401] * 5
    # A window may have ended in between; then one of the two had six attempts or more.
    assert 429 in codes[5:]


def test_a_request_that_is_too_large_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken.feedback.web.security.MAX_BODY", 10_000)
    client = house.client()
    assert client.post("/login", content=b"x" * 20_000).status_code == 413
    pieces = (b"x" * 1000 for _ in range(50))
    headers = {"origin": ADDRESS, "content-type": "application/x-www-form-urlencoded"}
    assert client.post("/login", content=pieces, headers=headers).status_code == 413
    assert client.get("/login").status_code == 200


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_logging_in_leads_nowhere_else(house: House, target: str) -> None:
    client = house.client()
    assert 'name="next" value="/"' in client.get("/login", params={"next": target}).text
    fields = {"name": "Ann", "password": PASSWORD, "next": target}
    assert post(client, "/login", fields, page="/login").headers["location"] == "/"


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1)) [y](data:text/html,<script>alert(1)</script>) [z](vbscript:x)",
    "![x](https://evil.example/pixel.png)",
    '<svg onload=alert(1)><math href="javascript:x">',
    "</textarea></script><script>alert(1)</script>",
    "{{7*7}} ${7*7} <% 7*7 %>",
    '<a href="x" hx-get="/manage" onclick=alert(1) style="position:fixed">x</a>',
    "`<img src=x onerror=alert(1)>`",
    '[x](https://a.example/"onmouseover="alert(1))',
    "<https://a.example/\u202e\u200b>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_text(text: str) -> None:
    for html in (str(rich(text)), str(plain(text))):
        tags = re.findall(r"<[^>]*>", html)
        for tag in tags:
            assert re.fullmatch(
                r'</?(?:p|code|br|em|strong|a|span)/?>|<a href="https?://[^"<>]*" rel="[a-z ]*">'
                r'|<span class="invisible">',
                tag,
            ), tag


def test_what_cannot_be_seen_is_shown() -> None:
    assert "U+202E" in plain("a\u202eb")
    assert "U+200B" in rich("**a\u200bb**")
    assert "U+0000" in plain("\x00")
    family, persian = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e\u0648"
    assert plain(family + persian) == family + persian
    assert "U+200D" in plain("a\u200db")


def test_a_huge_text_is_shown_without_waiting(house: House) -> None:
    line = "* [x](y) **bold** `code` | a | b |\n"
    assert len(rich(line * 10_000)) > 100_000


def test_the_secret_is_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = read_secret(path)
    assert read_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(DataError, match="chmod 600"):
        read_secret(path)
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(DataError, match="no secret"):
        read_secret(path)


def test_passwords_do_not_travel_in_the_clear_unless_allowed() -> None:
    assert check_address("http://127.0.0.1:8770/", insecure=False) == "http://127.0.0.1:8770"
    with pytest.raises(UsageError, match="TLS"):
        check_address("http://192.168.0.7:8770", insecure=False)
    assert check_address("http://192.168.0.7:8770", insecure=True)
    with pytest.raises(UsageError, match="expected something like"):
        check_address("label.example.org", insecure=False)


def test_a_task_says_nothing_of_models_gold_or_ids(house: House) -> None:
    project = house.work.project(num_tasks=0)
    line = lines(1)[0]
    named = tuple(
        one.model_copy(update={"id": f"secret-model-{number}", "model": f"secret-model-{number}"})
        for number, one in enumerate(line.completions)
    )
    gold = {"type": "comparison", "outcome": "win", "winner": "secret-model-1"}
    line = type(line).model_validate({**line.model_dump(), "completions": [one.model_dump() for one in named]})
    line = type(line).model_validate({**line.model_dump(), "gold": gold, "tags": ["secret-tag"]})
    house.work.projects.add_tasks(project.id, [line], SOURCE)
    client = house.logged_in("Ann")
    lease_id = _lease_of(house, "Ann")
    answer = client.get(f"/tasks/{lease_id}")
    assert "Answer a to 0." in answer.text
    for word in ("secret", "gold", "comparison-win"):
        assert word not in answer.text
        assert word not in str(answer.headers)
    draft = post(client, f"/tasks/{lease_id}/draft", {"choice": "1-3"})
    assert "secret" not in draft.text

"""Logs: JSON, a line for each request that was asked for, and never what somebody wrote."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from harken.feedback.web.logs import JsonFormatter, RequestLog
from harken.feedback.web.security import Shell
from tests.feedback.web_client import ADDRESS, House, post

SECRET = "zebra crossing at noon"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("harken")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_requests_are_logged_by_route_without_content(tmp_path: Path, lines: io.StringIO) -> None:
    house = House(tmp_path)
    try:
        (ann,) = house.work.people("Ann")
        house.work.project()
        invitation = house.work.accounts.invite("annotator", house.work.accounts.everyone()[-1])
        app = RequestLog(Shell(house.app))
        TestClient(app, base_url=ADDRESS).get(f"/join/{invitation}")
        session = house.work.accounts.log_in(ann)
        client = TestClient(app, base_url=ADDRESS, follow_redirects=False, cookies={"__Host-harken": session})
        (project,) = house.work.projects.all()
        lease = post(client, f"/projects/{project.id}/next").headers["location"].removeprefix("/tasks/")
        fields = {"outcome": "answer", "choice": "1-2", "rationale": SECRET}
        assert post(client, f"/tasks/{lease}", fields).status_code == 303
        assert post(client, f"/tasks/{lease}/draft", {"rationale": SECRET}).status_code == 200
    finally:
        house.close()
    entries = [json.loads(line) for line in lines.getvalue().splitlines()]
    seen = {(entry["method"], entry["route"], entry["status"]) for entry in entries}
    assert {("GET", "/join/{token}", 200), ("POST", "/tasks/{lease_id}", 303)} <= seen
    assert all(entry["event"] == "request" and entry["ms"] >= 0 for entry in entries)
    for word in (SECRET, "zebra", invitation, session, lease, ann.id, "Ann", "Question"):
        assert word not in lines.getvalue(), word


def test_an_error_is_logged_by_type_and_place_without_its_text(lines: io.StringIO) -> None:
    try:
        json.loads(f"{SECRET}")
        int(SECRET)
    except ValueError as error:
        logging.getLogger("harken.test").error("failed", exc_info=error)
    (entry,) = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert (entry["level"], entry["event"], entry["error"]) == ("error", "failed", "JSONDecodeError")
    assert any("test_web_logs.py" in place for place in entry["where"])
    assert "zebra" not in lines.getvalue()

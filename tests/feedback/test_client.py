"""The Python client against a real server of two processes: the whole loop, webhooks, limits that hold over both."""

import http.client
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harken.client import ApiError, Client, verify_webhook
from harken.feedback.exchange import read_harken
from harken.feedback.store import Accounts, FeedbackStore, Tokens, Webhooks
from harken.feedback.web.deliver import webhook_secret
from harken.feedback.web.site import read_secret
from harken.records import Comparison
from tests.feedback.receiver import Seen
from tests.feedback.receiver import receiver as receiver
from tests.feedback.working import PASSWORD

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Server:
    """A running `harken ui` with two processes."""

    address: str
    folder: Path
    owner: Client
    judge: Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ui")
    store = f"sqlite:///{folder / 'f.db'}"
    with FeedbackStore.open(store) as opened:
        accounts, tokens = Accounts(opened.database), Tokens(opened.database)
        olga = accounts.join(accounts.first_invitation(), "Olga", PASSWORD)
        owner, _ = tokens.make("owner program", olga, role="owner")
        judge, _ = tokens.make("judge program", olga)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from harken.cli import main; main()", "ui", "--store", store, "--port", str(port)]
    command += ["--workers", "2", "--allow-host", "127.0.0.1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            _wait_for(address, process)
            yield Server(address, folder, Client(address, owner), Client(address, judge))
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(2400):
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{address}/login").close()
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server did not start in four minutes")


def test_from_tasks_to_an_export_that_training_reads(server: Server, receiver: tuple[str, Seen]) -> None:
    url, seen = receiver
    with FeedbackStore.open(f"sqlite:///{server.folder / 'f.db'}") as store:
        olga = next(one for one in Accounts(store.database).everyone() if not one.is_service)
        hook = Webhooks(store.database).make(url, ["judgment.saved", "task.completed", "project.completed"], olga)
    owner, judge = server.owner, server.judge
    assert owner.me()["role"] == "owner"
    project = owner.make_project("by client", {"task": {"kind": "comparison"}})
    tasks = [{"prompt": f"Question {n}?", "completions": [f"good {n}", f"bad {n}"]} for n in range(5)]
    assert owner.add_tasks(project["id"], tasks) == {"num_added": 5, "num_already_there": 0}
    receipts: list[str] = []
    while claim := judge.claim(project["id"]):
        assert judge.heartbeat(claim["id"])["is_held"]
        place = next(one["place"] for one in claim["completions"] if one["text"].startswith("good"))
        receipts.append(judge.hand_in(claim["id"], {"choice": f"{place}-2"}, rationale="it is good"))
    assert len(receipts) == 5
    assert owner.progress(project["id"])["num_done"] == 5
    assert [one["num_done"] for one in owner.tasks(project["id"])] == [1] * 5
    figures = owner.figures(project["id"])
    assert figures["people"][0]["num_judgments"] == 5
    manifest = owner.export(project["id"], server.folder / "export")
    assert manifest.info["counts"] == {"judgments": 5, "completions": 10, "prompts": 5}
    read = read_harken(server.folder / "export")
    texts = {one.id: one.message.content for one in read.completions}
    assert {one.id for one in read.judgments} == set(receipts)
    for judgment in read.judgments:
        assert isinstance(judgment.answer, Comparison)
        assert judgment.answer.winner is not None
        assert texts[judgment.answer.winner].startswith("good")
    for _ in range(300):
        if len(seen) == 11:
            break
        time.sleep(0.1)
    secret = webhook_secret(read_secret(server.folder / "f.db.secret"), hook.id)
    assert all(verify_webhook(secret, header, body) for _, header, body in seen)
    events = [re.findall(rb'"event": "([a-z.]+)"', body)[0].decode() for _, _, body in seen]
    counted = {event: events.count(event) for event in set(events)}
    assert counted == {"judgment.saved": 5, "task.completed": 5, "project.completed": 1}


def test_errors_say_what_the_server_said(server: Server) -> None:
    for call, status, part in (
        (lambda: server.judge.make_project("x", {}), 403, "role owner"),
        (lambda: server.owner.progress("none"), 404, "no project"),
        (lambda: server.owner.make_project("x", {"overlap": 0}), 400, "overlap"),
        (lambda: Client(server.address, "harken_x").me(), 401, "valid token"),
        (lambda: server.judge.hand_in("../../login", {}), 404, "Not Found"),
    ):
        with pytest.raises(ApiError, match=part) as caught:
            call()
        assert caught.value.status == status


def test_a_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harken.client.RETRIES", 0)
    with pytest.raises(ApiError, match="is the server running") as caught:
        Client("http://127.0.0.1:1", "t").me()
    assert caught.value.status == 0


def test_log_ins_are_limited_over_all_processes(server: Server) -> None:
    """At most 5 a minute for an account: of 14 tries at most 10 pass, even where a minute ends in between."""
    address = urllib.parse.urlsplit(server.address)
    codes: list[int] = []
    for _ in range(14):
        # A new connection each time, which either process may take.
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        connection.request("GET", "/login")
        page = connection.getresponse()
        cookie = (page.getheader("set-cookie") or "").partition(";")[0]
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.read().decode())
        assert found
        body = urllib.parse.urlencode({"csrf": found.group(1), "name": "Olga", "password": "wrong horse"})
        headers = {"cookie": cookie, "origin": server.address, "content-type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/login", body, headers)
        codes.append(connection.getresponse().status)
        connection.close()
    assert set(codes) == {401, 429}
    assert codes.count(401) <= 10

"""Webhooks: what is queued when, how it is signed, tried again and given up, and where it is never sent."""

import json
from types import SimpleNamespace

import pytest

from harken.client import verify_webhook
from harken.errors import DataError
from harken.feedback import outgoing
from harken.feedback.outgoing import Refused, check_target, is_public
from harken.feedback.store import FeedbackStore, Given, Webhooks
from harken.feedback.store import webhooks as webhooks_module
from harken.feedback.store.webhooks import BACKOFF_S, Delivery
from harken.feedback.web.deliver import Courier, deliver, signature, webhook_secret
from harken.records import Comparison
from tests.feedback.receiver import Seen
from tests.feedback.receiver import receiver as receiver
from tests.feedback.web_client import House, post
from tests.feedback.working import Workshop, win

ALL = ["judgment.saved", "task.completed", "project.completed"]
SECRET = b"s" * 64


def _drain(webhooks: Webhooks) -> list[dict[str, str]]:
    """Take everything that is due, and call it received."""
    found: list[dict[str, str]] = []
    while delivery := webhooks.take_due():
        webhooks.settle(delivery, "received", received=True)
        found.append(json.loads(delivery.body))
    return found


def test_each_event_is_told_once_and_holds_no_text(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store:
        work = Workshop.over(store)
        ann, bob = work.people("Ann", "Bob")
        olga = next(one for one in work.accounts.everyone() if one.role == "owner")
        project, webhooks = work.project(2, overlap=2), Webhooks(store.database)
        webhooks.make("https://example.org/hook", ALL, olga, project.id)
        webhooks.make("https://example.org/other", ["project.completed"], olga, work.project(1).id)
        told: list[list[str]] = []
        for person in (ann, bob, ann, bob):
            lease = work.leases.claim(project.id, person.id)
            judgment = work.leases.submit(lease.id, person.id, win(lease, rationale="secret words"))
            events = _drain(webhooks)
            told.append([event["event"] for event in events])
            assert events[0]["judgment_id"] == judgment.id
            assert all(event["project_id"] == project.id for event in events)
            assert "secret" not in str(events)
        assert told == [ALL[:1], ALL[:2], ALL[:1], ALL]
        # An answer that is changed completes nothing again.
        changed = Given(Comparison(outcome="tie"), replaces=judgment.id)
        work.leases.submit(lease.id, bob.id, changed)
        (event,) = _drain(webhooks)
        assert (event["event"], event["supersedes"]) == ("judgment.saved", judgment.id)


def test_a_skip_completes_nothing(house: House) -> None:
    project = house.work.project(1)
    house.site.webhooks.make("https://example.org/", ALL, house.work.accounts.everyone()[2])
    ann = house.work.accounts.everyone()[0]
    lease = house.work.leases.claim(project.id, ann.id)
    house.work.leases.submit(lease.id, ann.id, Given(Comparison(outcome="skip")))
    assert [event["event"] for event in _drain(house.site.webhooks)] == ["judgment.saved"]


def test_an_event_is_tried_again_with_longer_waits_and_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr(webhooks_module, "time", SimpleNamespace(time=lambda: now[0]))
    hook = house.site.webhooks.make("https://example.org/", ALL, house.work.accounts.everyone()[2])
    house.site.webhooks.test(hook.id)
    times = 0

    def fails(*args: object, **kwargs: object) -> int:
        del args, kwargs
        if times % 2:
            raise ConnectionRefusedError
        return 503

    for wait in (*BACKOFF_S, 0.0):
        delivery = house.site.webhooks.take_due()
        assert delivery is not None
        assert delivery.attempts == times
        # Nobody else takes what is under way.
        assert house.site.webhooks.take_due() is None
        deliver(house.site.webhooks, delivery, SECRET, (), via=fails)
        times += 1
        now[0] += max(wait - 1, 0)
        assert house.site.webhooks.take_due() is None
        now[0] += 1
    now[0] += 1e7
    assert house.site.webhooks.take_due() is None
    (state,) = house.site.webhooks.all()
    assert (state.num_waiting, state.last_outcome) == (0, "no answer: ConnectionRefusedError")


def test_a_process_that_dies_while_sending_leaves_the_event_to_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = house.site.webhooks.make("https://example.org/", ALL, house.work.accounts.everyone()[2])
    house.site.webhooks.test(hook.id)
    first = house.site.webhooks.take_due()
    assert house.site.webhooks.take_due() is None
    monkeypatch.setattr(webhooks_module, "_HELD_S", -1.0)
    house.site.webhooks.test(hook.id)
    second = house.site.webhooks.take_due()
    assert first
    assert second
    assert house.site.webhooks.take_due() == second


def test_a_signature_holds_for_its_body_its_time_and_its_secret() -> None:
    secret, body = webhook_secret(SECRET, "w"), b'{"event": "ping"}'
    header = signature(secret, 1000, body)
    assert verify_webhook(secret, header, body, now=1000)
    assert verify_webhook(secret, header, body, now=1300)
    assert not verify_webhook(secret, header, body, now=1301)
    assert not verify_webhook(secret, header, body, now=699)
    assert not verify_webhook(secret, header, body + b" ", now=1000)
    assert not verify_webhook(secret, header.replace("t=1000", "t=1001"), body, now=1000)
    assert not verify_webhook(webhook_secret(SECRET, "v"), header, body, now=1000)
    for bad in ("", "t=,v1=", "t=x,v1=y", "v1=" + "0" * 64, "t=1000", "t=1000,v1=é", "t=" + "9" * 400 + ",v1=0"):
        assert not verify_webhook(secret, bad, body, now=1000)


INSIDE = [
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1",
    "2002:a00:1::", "ff02::1", "192.0.2.1",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside_are_never_sent_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_public(address)
    # One private address among public ones is enough.
    found = [(0, 0, 0, "", (one, 443)) for one in ("93.184.216.34", address)]
    monkeypatch.setattr(outgoing.socket, "getaddrinfo", lambda *args, **kwargs: found)
    with pytest.raises(Refused, match="--allow-host"):
        check_target("https://inside.example.org/hook")
    assert check_target("http://inside.example.org:8080/hook", ["INSIDE.example.org"]).port == 8080


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://93.184.216.34/", "expected https"),
        ("https://localhost/", "private network"),
        ("https://127.1/", "private network"),
        ("https://2130706433/", "private network"),
        ("https://0x7f000001/", "private network"),
        ("https://[::1]/", "private network"),
        ("https://user:secret@example.org/", "leave them out"),
        ("ftp://example.org/", "not a URL"),
        ("file:///etc/passwd", "not a URL"),
        ("https://", "not a URL"),
        ("https://example.org:99999/", "not a URL"),
        ("https://exa mple.org/", "not a URL"),
        ("https://example.org/\r\nx: y", "not a URL"),
        ("https://example.invalid/", "not found"),
        ("", "not a URL"),
    ],
)
def test_urls_that_lead_nowhere_good_are_refused(url: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as caught:
        check_target(url)
    assert "secret" not in str(caught.value)


def test_public_addresses_are_taken() -> None:
    for address in ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "8.8.8.8"):
        assert is_public(address)


def test_the_courier_sends_what_is_due_and_follows_no_redirect(house: House, receiver: tuple[str, Seen]) -> None:
    url, seen = receiver
    olga = house.work.accounts.everyone()[2]
    hooks = [house.site.webhooks.make(url + path, ALL, olga) for path in ("/here?x=1", "/away")]
    for hook in hooks:
        house.site.webhooks.test(hook.id)
    courier = Courier(house.site.webhooks, house.site.secret, ["127.0.0.1"])
    courier.start()
    for _ in range(200):
        if all(one.last_outcome for one in house.site.webhooks.all()):
            break
        courier.join(0.05)
    courier.stop()
    courier.join(10)
    assert not courier.is_alive()
    assert [path for path, _, _ in seen] == ["/here?x=1", "/away"]
    for hook, (_, header, body) in zip(hooks, seen, strict=True):
        assert verify_webhook(webhook_secret(house.site.secret, hook.id), header, body)
        assert json.loads(body)["event"] == "ping"
    assert [one.last_outcome for one in house.site.webhooks.all()] == ["received", "answered 302"]


def test_an_address_that_moved_inside_is_not_sent_to(house: House, receiver: tuple[str, Seen]) -> None:
    url, seen = receiver
    delivery = Delivery("d", "w", url, "ping", "{}", 0)
    outcomes: list[str] = []
    watched = SimpleNamespace(settle=lambda one, outcome, received: outcomes.append(outcome))
    deliver(watched, delivery, SECRET, ())  # pyright: ignore[reportArgumentType]
    assert seen == []
    assert outcomes[0].startswith("not sent: ")


def test_owners_make_test_and_remove_webhooks(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    olga = house.logged_in("Olga")
    path = "/manage/webhooks"
    refused = post(olga, path, {"url": "https://localhost/x", "events": "judgment.saved"})
    assert (refused.status_code, "private network" in refused.text) == (422, True)
    monkeypatch.setattr(outgoing.socket, "getaddrinfo", lambda *a, **k: [(0, 0, 0, "", ("93.184.216.34", 443))])
    assert post(olga, path, {"url": "https://example.org/hook"}).status_code == 422
    assert post(olga, path, {"url": "https://example.org/hook", "events": "odd"}).status_code == 422
    made = post(olga, path, {"url": "https://example.org/hook", "events": "judgment.saved"})
    (hook,) = house.site.webhooks.all()
    secret = webhook_secret(house.site.secret, hook.id)
    assert secret in made.text
    assert secret not in olga.get(path).text
    assert post(olga, f"{path}/{hook.id}/test").status_code == 303
    assert house.site.webhooks.all()[0].num_waiting == 1
    assert post(olga, f"{path}/{hook.id}/remove").status_code == 303
    assert house.site.webhooks.all() == []
    assert house.site.webhooks.take_due() is None
    with pytest.raises(DataError, match="no webhook"):
        house.site.webhooks.remove(hook.id, house.work.accounts.everyone()[2])

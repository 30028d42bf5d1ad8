"""Sending webhooks: a thread of each server process that takes what is due out of the store, signs it and sends it."""

import hashlib
import hmac
import http.client
import threading
import time
from collections.abc import Callable, Collection

from harken.errors import StorageError
from harken.feedback.outgoing import Refused, send
from harken.feedback.store.webhooks import Delivery, Webhooks

POLL_S = 1.0
Send = Callable[..., int]


def webhook_secret(app_secret: bytes, webhook_id: str) -> str:
    """Return the secret of one webhook, derived from the app's: the store holds none that could leak with it."""
    return hmac.new(app_secret, f"webhook {webhook_id}".encode(), hashlib.sha256).hexdigest()


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """Return the header `Harken-Signature` of a body that is sent at a time: `t=SECONDS,v1=HEX`.

    The time is signed with the body, so that a receiver can refuse what somebody recorded and sends again later.
    """
    code = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={code}"


class Courier(threading.Thread):
    """Sends what is due until it is stopped; consumes deliveries of the store, which other processes share."""

    def __init__(self, webhooks: Webhooks, secret: bytes, allowed_hosts: Collection[str]) -> None:
        super().__init__(name="webhooks", daemon=True)
        self._webhooks = webhooks
        self._secret = secret
        self._allowed_hosts = allowed_hosts
        self._stopped = threading.Event()

    def run(self) -> None:
        """Take and send, one after the other, and wait where nothing is due."""
        while not self._stopped.is_set():
            try:
                delivery = self._webhooks.take_due()
                if delivery is not None:
                    deliver(self._webhooks, delivery, self._secret, self._allowed_hosts)
                    continue
            except StorageError:
                # The store is busy or away: pages say so, and what is due stays due.
                self._stopped.wait(10 * POLL_S)
            self._stopped.wait(POLL_S)

    def stop(self) -> None:
        """End after the delivery under way."""
        self._stopped.set()


def deliver(
    webhooks: Webhooks, delivery: Delivery, app_secret: bytes, allowed_hosts: Collection[str], *, via: Send = send
) -> None:
    """Make one attempt and note how it ended; only an answer of 200 to 299 counts as received."""
    body = delivery.body.encode()
    headers = {
        "content-type": "application/json",
        "user-agent": "harken",
        "harken-event": delivery.event,
        "harken-delivery": delivery.id,
        "harken-signature": signature(webhook_secret(app_secret, delivery.webhook_id), int(time.time()), body),
    }
    try:
        status = via(delivery.url, body, headers, allowed_hosts=allowed_hosts)
    except Refused as error:
        webhooks.settle(delivery, f"not sent: {error}", received=False)
    except (OSError, http.client.HTTPException) as error:
        webhooks.settle(delivery, f"no answer: {type(error).__name__}", received=False)
    else:
        received = 200 <= status < 300
        webhooks.settle(delivery, "received" if received else f"answered {status}", received=received)

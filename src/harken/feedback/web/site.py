"""What every page of one running app has at hand: store, secret, address, templates."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from harken.artifacts import write_private
from harken.config.base import Config
from harken.errors import DataError, UsageError
from harken.feedback.live import ChatRoom
from harken.feedback.store import Accounts, FeedbackStore, Leases, Projects, Tokens, Webhooks
from harken.feedback.store.accounts import SESSION_MAX_S
from harken.feedback.store.figures import Figures
from harken.feedback.store.streams import Streams
from harken.feedback.web.render import plain, rich
from harken.records import Completion, Judgment

STATIC = Path(__file__).parent / "static"
_SECRET_BYTES = 32


class UiConfig(Config):
    """How one app is run; each server process gets the same."""

    store: str
    """Feedback store, as a URL."""
    address: str
    """The address people type, such as https://label.example.org."""
    secret_file: Path
    """File with the app's secret, readable by its owner only."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts in private networks, or without TLS, that webhooks may go to."""
    log_requests: bool = False
    """Write a line for each request."""


Measure = Callable[[Sequence[Judgment], Sequence[Completion]], dict[str, Any]]
"""Makes statistics of judgments and what was shown in them, as JSON-able values. The app is given it: statistics are
other packages' business."""


@dataclass(frozen=True)
class Site:
    """One running app."""

    store: FeedbackStore
    accounts: Accounts
    projects: Projects
    leases: Leases
    figures: Figures
    streams: Streams
    tokens: Tokens
    webhooks: Webhooks
    measure: Measure
    allowed_hosts: tuple[str, ...]
    secret: bytes
    address: str
    templates: Environment
    chat: ChatRoom | None = None
    """Two models to talk with; None where `harken ui` was started without."""

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the app over TLS."""
        return self.address.startswith("https://")

    @property
    def cookie(self) -> str:
        """Name of the session's cookie; with this prefix browsers refuse one that another host or path has set."""
        return "__Host-harken" if self.is_https else "harken"

    def keyed(self, text: str) -> str:
        """Return a hash that nobody can compute without the app's secret."""
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page; `person`, `csrf` and `has_chat` are known to every template."""
        html = self.templates.get_template(template).render(
            person=getattr(request.state, "person", None),
            csrf=getattr(request.state, "csrf", ""),
            has_chat=self.chat is not None,
            **values,
        )
        response = HTMLResponse(html, status_code=status)
        if fresh := getattr(request.state, "fresh_cookie", None):
            self.give_cookie(response, fresh)
        return response

    def give_cookie(self, response: Response, token: str) -> None:
        """Set the cookie of a session, or of a visitor who has none."""
        response.set_cookie(
            self.cookie,
            token,
            max_age=int(SESSION_MAX_S),
            httponly=True,
            samesite="lax",
            secure=self.is_https,
            path="/",
        )


def open_site(config: UiConfig, measure: Measure) -> Site:
    """Open the store and read the secret, which is made first if it is not there.

    Raises:
        DataError: the store or the secret cannot be used.
        StorageError: one of them cannot be written.
    """
    secret = read_secret(config.secret_file)
    store = FeedbackStore.open(config.store)
    templates = Environment(
        loader=PackageLoader("harken.feedback.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja gives no type for its filters.
    cast("dict[str, Any]", templates.filters).update(plain=plain, rich=rich, day=_day)  # pyright: ignore[reportUnknownMemberType]
    return Site(
        store=store,
        accounts=Accounts(store.database),
        projects=Projects(store.database),
        leases=Leases(store.database),
        figures=Figures(store.database),
        streams=Streams(store.database),
        tokens=Tokens(store.database),
        webhooks=Webhooks(store.database),
        measure=measure,
        allowed_hosts=config.allowed_hosts,
        secret=secret,
        address=config.address,
        templates=templates,
    )


def _day(seconds: float) -> str:
    """Return the day of a time in seconds since 1970, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def read_secret(path: Path) -> bytes:
    """Return the secret in a file; a file that is not there is made, readable by its owner only.

    Raises:
        DataError: others can read the file, or it holds no secret.
        StorageError: it cannot be written.
    """
    if not path.exists():
        write_private(path, secrets.token_hex(_SECRET_BYTES))
    if path.stat().st_mode & 0o077:
        raise DataError(f"{path}: others may read this secret; run chmod 600 on it, or delete it to get a fresh one")
    text = path.read_text().strip()
    if len(text) < 2 * _SECRET_BYTES:
        raise DataError(f"{path}: no secret of {2 * _SECRET_BYTES} characters; delete the file to get a fresh one")
    return text.encode()


def check_address(address: str, *, insecure: bool) -> str:
    """Return the address people type, without a slash at its end.

    Raises:
        UsageError: it is no address, or passwords would travel in the clear and `insecure` does not allow it.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(f"--address {address}: expected something like https://label.example.org")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1") and not insecure:
        raise UsageError(
            f"--address {address}: passwords would travel readable for all; put a server with TLS in front and give "
            "its https address, or allow it with --insecure-http"
        )
    return f"{parts.scheme}://{parts.netloc}"


async def _site(request: Request) -> Site:
    # Waits for nothing: a plain function would be sent to a thread and back.
    return request.app.state.site


SiteDep = Annotated[Site, Depends(_site)]


def first_steps(config: UiConfig) -> str | None:
    """Make or upgrade the store, and return the link for the first owner's account where nobody has one yet.

    Raises:
        DataError: the store cannot be used.
        StorageError: it cannot be written.
    """
    with FeedbackStore.open(config.store) as store:
        accounts = Accounts(store.database)
        return None if accounts.has_owner() else f"{config.address}/join/{accounts.first_invitation()}"

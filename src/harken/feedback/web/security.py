"""Who may do what: sessions, roles, forged requests, limits, and the headers that every response carries."""

import hashlib
import hmac
import secrets
from collections.abc import AsyncGenerator, Callable
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.responses import Response
from starlette.datastructures import FormData, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harken.errors import HarkenError
from harken.feedback.store import Person, Role
from harken.feedback.store.people import needs_consent
from harken.feedback.web.site import Site, SiteDep

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
API = "/api"
"""Begins the addresses for programs, which carry a token in a header and never a cookie."""
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
MAX_BODY = 64 * 1024 * 1024
"""Largest request in bytes; a file of tasks is the largest that should come."""
MAX_FIELD = 16 * 1024 * 1024
"""Largest field of a form in bytes as it comes: the longest text, when each of its letters takes twelve."""
_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Invitations are in addresses, which no other site may learn; under `no-referrer` forms would have no origin.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class ConsentNeeded(HarkenError):
    """The person has not agreed to the newest consent text."""


class LoginNeeded(HarkenError):
    """Nobody is logged in."""


class Forbidden(HarkenError):
    """The request was forged, or the person's role does not allow it."""


class TooOften(HarkenError):
    """A limit was reached."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Shell:
    """Around everything: security headers on every response, and an end to requests that are too large."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = 0
        too_large = False

        async def counted() -> Message:
            nonlocal size, too_large
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                # The rest is not read: the handler sees a client that went away.
                too_large = True
                return {"type": "http.disconnect"}
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if too_large:
                    message["status"] = 413
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if not scope["path"].startswith("/static/"):
                    headers["cache-control"] = "no-store"
            await send(message)

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > MAX_BODY:
            answer = Response(f"at most {MAX_BODY} bytes can be sent\n", status_code=413)
            await answer(scope, receive, with_headers)
            return
        await self._app(scope, counted, with_headers)


def csrf_token(cookie: str) -> str:
    """Return the token that forms of one session carry: only who has the cookie can know it."""
    return hmac.new(cookie.encode(), b"csrf", hashlib.sha256).hexdigest()


async def guard(request: Request, site: SiteDep) -> AsyncGenerator[None]:
    """Find out who asks, and refuse changes that another site's page could have made the browser send.

    Raises:
        Forbidden: a foreign or missing origin, or a missing or foreign token.
    """
    cookie = request.cookies.get(site.cookie, "")
    request.state.cookie = cookie
    request.state.fresh_cookie = None
    if not cookie:
        # A visitor without a session gets a cookie of their own too, so that log-in forms are protected as well.
        cookie = request.state.fresh_cookie = secrets.token_urlsafe(32)
    request.state.csrf = csrf_token(cookie)
    try:
        # Browsers send cookies by themselves and tokens never: what needs a token cannot be forged.
        if request.method not in SAFE_METHODS and not is_api(request):
            await _refuse_forged(request, site)
        yield
    finally:
        # Files that were uploaded.
        await request.close()


def is_api(request: Request) -> bool:
    """Tell whether a request is for the API."""
    return request.url.path.startswith(f"{API}/")


async def _refuse_forged(request: Request, site: Site) -> None:
    if request.headers.get("origin") != site.address:
        found = request.headers.get("origin", "none")
        raise Forbidden(f"this request came from {found}; open the app at {site.address} and try again")
    given = request.headers.get("x-csrf-token") or (await read_form(request)).get("csrf", "")
    if not request.state.cookie or not hmac.compare_digest(str(given).encode(), request.state.csrf.encode()):
        raise Forbidden("this form is too old or not yours; reload the page and try again")


async def read_form(request: Request) -> FormData:
    """Return the fields of a form; a handler that waits for nothing cannot read them itself."""
    return await request.form(max_part_size=MAX_FIELD)


FormDep = Annotated[FormData, Depends(read_form)]


def allow(*roles: Role) -> Callable[[Request, Site], Person]:
    """Return what gives a handler the person who asks, and refuses all but these roles."""

    def person(request: Request, site: SiteDep) -> Person:
        found = site.accounts.person_of_session(request.state.cookie) if request.state.cookie else None
        request.state.person = found
        if found is None:
            raise LoginNeeded("log in first")
        if found.role not in roles:
            raise Forbidden(f"this is for {' and '.join(roles)} only")
        return found

    return person


def _agreed(request: Request, site: SiteDep) -> Person:
    """Return the person who asks, once they have agreed to what people are asked to agree to.

    Raises:
        ConsentNeeded: they have not, or not to its newest version.
    """
    person = allow("owner", "reviewer", "annotator")(request, site)
    with site.store.database.reading() as connection:
        if needs_consent(connection, person.id, "participation"):
            raise ConsentNeeded("agree first")
    return person


Anyone = Annotated[Person, Depends(allow("owner", "reviewer", "annotator"))]
Worker = Annotated[Person, Depends(_agreed)]
"""Who judges."""
ReviewerDep = Annotated[Person, Depends(allow("owner", "reviewer"))]
OwnerDep = Annotated[Person, Depends(allow("owner"))]


def limit(site: Site, name: str, *, most: int, window_s: int) -> None:
    """Count one more of something and refuse it when that is too often; the limit holds across processes.

    Raises:
        TooOften: it happened more than `most` times in this window.
    """
    count, retry_s = site.accounts.count(site.keyed(name), window_s)
    if count > most:
        raise TooOften(f"too often; try again in {int(retry_s) + 1} seconds", retry_s)


def address_of(request: Request) -> str:
    """Return where a request came from; it is only ever stored as a keyed hash, for a day at most."""
    return request.client.host if request.client else "unknown"


def text_of(form: FormData, name: str, default: str = "") -> str:
    """Return one text of a form."""
    value = form.get(name, default)
    return value if isinstance(value, str) else default


def texts_of(form: FormData) -> dict[str, str]:
    """Return all texts of a form, without its files."""
    return {name: value for name, value in form.items() if isinstance(value, str)}


def local_path(path: str) -> str:
    """Return a path of this app, or the start page for anything else."""
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return quote(path, safe="/?=&%") if is_local else "/"

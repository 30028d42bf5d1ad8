"""Pages around one's account: log in and out, join by invitation, change the password."""

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from harken.errors import DataError
from harken.feedback.store import Person
from harken.feedback.store.people import needs_consent
from harken.feedback.web.security import Anyone, FormDep, TooOften, address_of, limit, local_path, text_of
from harken.feedback.web.site import Site, SiteDep

router = APIRouter()

_MINUTE = 60
_HOUR = 3600


def start_session(site: Site, person: Person, target: str) -> Response:
    """Log a person in: a new session each time, so that a cookie planted before means nothing.

    Who has something to agree to is asked at once.
    """
    with site.store.database.reading() as connection:
        if needs_consent(connection, person.id, "participation"):
            target = f"/consent?next={quote(target, safe='/')}"
    response = RedirectResponse(target, status_code=303)
    site.give_cookie(response, site.accounts.log_in(person))
    return response


@router.get("/login")
def login_page(request: Request, site: SiteDep, next: str = "/") -> Response:
    """Show the log-in form."""
    return site.page(request, "login.html.jinja", next=local_path(next), name="", problem="")


@router.post("/login")
def login(request: Request, site: SiteDep, form: FormDep) -> Response:
    """Check name and password."""
    name, target = text_of(form, "name"), local_path(text_of(form, "next", "/"))
    try:
        limit(site, f"login account {name.strip().casefold()}", most=5, window_s=_MINUTE)
        limit(site, f"login address {address_of(request)}", most=30, window_s=_MINUTE)
    except TooOften as error:
        return _too_often(site, request, error, target)
    person = site.accounts.check_password(name, text_of(form, "password"))
    if person is None:
        problem = "Name or password is wrong."
        return site.page(request, "login.html.jinja", 401, next=target, name=name[:80], problem=problem)
    if request.state.cookie:
        site.accounts.log_out(request.state.cookie)
    return start_session(site, person, target)


def _too_often(site: Site, request: Request, error: TooOften, target: str) -> Response:
    problem = f"Too many attempts. Try again in {int(error.retry_s) + 1} seconds."
    response = site.page(request, "login.html.jinja", 429, next=target, name="", problem=problem)
    response.headers["retry-after"] = str(int(error.retry_s) + 1)
    return response


@router.post("/logout")
def logout(request: Request, site: SiteDep, person: Anyone) -> Response:
    """End this session."""
    del person
    site.accounts.log_out(request.state.cookie)
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(site.cookie, path="/", secure=site.is_https, httponly=True, samesite="lax")
    return response


@router.get("/join/{token}")
def join_page(request: Request, site: SiteDep, token: str) -> Response:
    """Show the form by which an invited person makes an account."""
    role = site.accounts.invited_role(token)
    if role is None:
        return site.page(
            request,
            "message.html.jinja",
            404,
            title="This invitation does not work",
            text="It was used already, or it is older than a week. Ask whoever sent it for a new one.",
            back="/login",
        )
    return site.page(request, "join.html.jinja", invitation=token, role=role, name="", problem="")


@router.post("/join/{token}")
def join(request: Request, site: SiteDep, form: FormDep, token: str) -> Response:
    """Make the account and log the person in."""
    limit(site, f"join {address_of(request)}", most=30, window_s=_HOUR)
    role = site.accounts.invited_role(token)
    name = text_of(form, "name")
    try:
        person = site.accounts.join(token, name, text_of(form, "password"))
    except DataError as error:
        if role is None:
            raise
        return site.page(
            request, "join.html.jinja", 422, invitation=token, role=role, name=name[:80], problem=f"{error}"
        )
    return start_session(site, person, "/manage" if person.role == "owner" else "/")


@router.get("/account")
def account_page(request: Request, site: SiteDep, person: Anyone) -> Response:
    """Show the person's own account."""
    del person
    return site.page(request, "account.html.jinja", problem="", done="")


@router.post("/account/password")
def change_password(request: Request, site: SiteDep, form: FormDep, person: Anyone) -> Response:
    """Change the password; every other session ends."""
    limit(site, f"login account {person.name.casefold()}", most=5, window_s=_MINUTE)
    if site.accounts.check_password(person.name, text_of(form, "password")) is None:
        return site.page(request, "account.html.jinja", 422, problem="The present password is wrong.", done="")
    try:
        site.accounts.set_password(person, text_of(form, "new_password"))
    except DataError as error:
        return site.page(request, "account.html.jinja", 422, problem=f"{error}", done="")
    return start_session(site, person, "/account")


@router.post("/account/log-out-everywhere")
def log_out_everywhere(site: SiteDep, person: Anyone) -> Response:
    """End all sessions of the person, on every device."""
    site.accounts.log_out_everywhere(person)
    return RedirectResponse("/login", status_code=303)

"""Pages on which owners connect programs: API tokens, and webhooks that tell other services of events."""

from typing import get_args

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from harken.errors import DataError, UsageError
from harken.feedback.outgoing import check_target
from harken.feedback.store import Role
from harken.feedback.store.webhooks import Event
from harken.feedback.web.deliver import webhook_secret
from harken.feedback.web.manage_pages import RoleDep
from harken.feedback.web.security import FormDep, OwnerDep, limit, text_of
from harken.feedback.web.site import Site, SiteDep

router = APIRouter(prefix="/manage")

_HOUR = 3600


@router.get("/tokens")
def tokens_page(request: Request, site: SiteDep, owner: OwnerDep) -> Response:
    """Show all API tokens, without the tokens themselves."""
    del owner
    return _tokens(request, site)


def _tokens(request: Request, site: Site, *, made: str = "", problem: str = "") -> Response:
    everyone = site.tokens.all()
    return site.page(
        request,
        "tokens.html.jinja",
        422 if problem else 200,
        tokens=everyone,
        accounts={one.person.id: one.person for one in everyone if not one.person.is_disabled},
        projects={one.id: one.name for one in site.projects.all()},
        roles=get_args(Role),
        made=made,
        problem=problem,
    )


@router.post("/tokens")
def make_token(request: Request, site: SiteDep, form: FormDep, owner: OwnerDep, role: RoleDep) -> Response:
    """Make a token, which is shown this once."""
    days = text_of(form, "days", "90").strip()
    try:
        token, _ = site.tokens.make(
            text_of(form, "name"), owner, role=role,
            days=int(days) if days.isascii() and days.isdigit() and len(days) < 6 else 0,
            project_id=text_of(form, "project_id") or None,
            account_id=text_of(form, "account_id") or None,
        )  # fmt: skip
    except DataError as error:
        return _tokens(request, site, problem=f"{error}")
    return _tokens(request, site, made=token)


@router.post("/tokens/{token_id}/revoke")
def revoke_token(request: Request, site: SiteDep, owner: OwnerDep, token_id: str) -> Response:
    """Make a token useless from now on."""
    try:
        site.tokens.revoke(token_id, owner)
    except DataError as error:
        return _tokens(request, site, problem=f"{error}")
    return RedirectResponse("/manage/tokens", status_code=303)


@router.get("/webhooks")
def webhooks_page(request: Request, site: SiteDep, owner: OwnerDep) -> Response:
    """Show all webhooks and how they do."""
    del owner
    return _webhooks(request, site)


def _webhooks(request: Request, site: Site, *, secret: str = "", problem: str = "", url: str = "") -> Response:
    return site.page(
        request,
        "webhooks.html.jinja",
        422 if problem else 200,
        webhooks=site.webhooks.all(),
        projects={one.id: one.name for one in site.projects.all()},
        events=get_args(Event),
        secret=secret,
        problem=problem,
        url=url,
    )


@router.post("/webhooks")
def make_webhook(request: Request, site: SiteDep, form: FormDep, owner: OwnerDep) -> Response:
    """Make a webhook; its secret is shown this once."""
    limit(site, f"webhook {owner.id}", most=60, window_s=_HOUR)
    url = text_of(form, "url").strip()
    events = [event for event in form.getlist("events") if isinstance(event, str)]
    try:
        check_target(url, site.allowed_hosts)
        made = site.webhooks.make(url, events, owner, text_of(form, "project_id") or None)
    except UsageError as error:
        return _webhooks(request, site, problem=f"{error}", url=url[:2000])
    return _webhooks(request, site, secret=webhook_secret(site.secret, made.id))


@router.post("/webhooks/{webhook_id}/test")
def test_webhook(request: Request, site: SiteDep, owner: OwnerDep, webhook_id: str) -> Response:
    """Send a `ping`, to see whether the address answers."""
    limit(site, f"webhook {owner.id}", most=60, window_s=_HOUR)
    try:
        site.webhooks.test(webhook_id)
    except DataError as error:
        return _webhooks(request, site, problem=f"{error}")
    return RedirectResponse("/manage/webhooks", status_code=303)


@router.post("/webhooks/{webhook_id}/remove")
def remove_webhook(request: Request, site: SiteDep, owner: OwnerDep, webhook_id: str) -> Response:
    """Delete a webhook with all that was not sent."""
    try:
        site.webhooks.remove(webhook_id, owner)
    except DataError as error:
        return _webhooks(request, site, problem=f"{error}")
    return RedirectResponse("/manage/webhooks", status_code=303)

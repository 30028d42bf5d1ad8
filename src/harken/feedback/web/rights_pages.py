"""Pages about one's own data: consent before the first task, a copy of everything, withdrawal."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from harken.feedback.privacy.keys import stored_demographics_key
from harken.feedback.store import audit, people
from harken.feedback.web.security import Anyone, FormDep, limit, local_path, text_of
from harken.feedback.web.site import SiteDep

router = APIRouter()

_HOUR = 3600


@router.get("/consent")
def consent_page(request: Request, site: SiteDep, person: Anyone, next: str = "/") -> Response:
    """Show what people are asked to agree to."""
    del person
    with site.store.database.reading() as connection:
        asked = people.current_consent_text(connection, "participation")
    if asked is None:
        return RedirectResponse(local_path(next), status_code=303)
    return site.page(request, "consent.html.jinja", asked=asked, next=local_path(next))


@router.post("/consent")
def agree(request: Request, site: SiteDep, form: FormDep, person: Anyone) -> Response:
    """Note that the person agreed to the text they saw; a newer one is shown first."""
    target = local_path(text_of(form, "next", "/"))
    with site.store.database.writing() as connection:
        asked = people.current_consent_text(connection, "participation")
        is_seen = asked is not None and asked.sha256 == text_of(form, "sha256")
        if asked is not None and is_seen and people.needs_consent(connection, person.id, "participation"):
            people.give_consent(connection, person.id, asked)
    if asked is not None and not is_seen:
        return site.page(request, "consent.html.jinja", 409, asked=asked, next=target)
    return RedirectResponse(target, status_code=303)


@router.post("/account/data")
def own_copy(site: SiteDep, person: Anyone) -> Response:
    """Send everything the store holds about the person, as JSON."""
    limit(site, f"own copy {person.id}", most=20, window_s=_HOUR)
    key = stored_demographics_key(site.store.secrets)
    with site.store.database.writing() as connection:
        found = people.own_data(connection, person.id, key, actor=audit.reference(connection, person.id))
    headers = {"content-disposition": 'attachment; filename="my-data.json"'}
    body = json.dumps(found, indent=2, ensure_ascii=False)
    return Response(body, media_type="application/json", headers=headers)


@router.post("/account/withdraw")
def withdraw(request: Request, site: SiteDep, person: Anyone) -> Response:
    """Take the person's answers out of every export from now on."""
    key = stored_demographics_key(site.store.secrets)
    with site.store.database.writing() as connection:
        actor = audit.reference(connection, person.id)
        count = people.withdraw(connection, person.id, "participation", key, actor=actor)
    text = f"Your {count} answers are in no export from now on. To have them deleted, write to whoever invited you."
    return site.page(request, "message.html.jinja", title="You have withdrawn", text=text, back="/account")

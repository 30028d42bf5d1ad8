"""Pages that keep people from harm: what they do not want to see, and what they tell of themselves, if anything."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from harken.errors import DataError
from harken.feedback.privacy.keys import demographics_key_path, read_demographics_key, stored_demographics_key
from harken.feedback.questions import NOT_SAID, QUESTIONS, answers, form_fields
from harken.feedback.store import Given, audit, people
from harken.feedback.store.care import opt_out, opted_out
from harken.feedback.web.kinds import make_answer
from harken.feedback.web.security import Anyone, FormDep, Worker, limit, text_of, texts_of
from harken.feedback.web.site import Site, SiteDep

router = APIRouter()

_HOUR = 3600


@router.get("/account/content")
def content_page(request: Request, site: SiteDep, person: Anyone) -> Response:
    """Show which kinds of content there are, and which of them this person is not given."""
    return site.page(request, "content.html.jinja", tags=_tags(site), unwanted=_unwanted(site, person.id))


def _tags(site: Site) -> list[str]:
    return sorted({tag for project in site.projects.all() for tag in project.config.sensitive_tags})


def _unwanted(site: Site, person_id: str) -> tuple[str, ...]:
    with site.store.database.reading() as connection:
        return opted_out(connection, person_id)


@router.post("/account/content")
def choose_content(site: SiteDep, form: FormDep, person: Anyone) -> Response:
    """Give the person no task of the kinds they marked, from now on."""
    limit(site, f"about {person.id}", most=60, window_s=_HOUR)
    marked = {value for value in form.getlist("tag") if isinstance(value, str)}
    with site.store.database.writing() as connection:
        # Of kinds that no project has any more nothing changes.
        kept = set(opted_out(connection, person.id)) - set(_tags(site))
        opt_out(connection, person.id, kept | (marked & set(_tags(site))))
    return RedirectResponse("/account/content", status_code=303)


@router.post("/tasks/{lease_id}/opt-out")
def opt_out_of_task(site: SiteDep, person: Worker, lease_id: str) -> Response:
    """Skip a task that came with a warning, and give the person no more of its kinds."""
    limit(site, f"submit {person.id}", most=300, window_s=60)
    lease = site.leases.get(lease_id, person.id)
    with site.store.database.writing() as connection:
        opt_out(connection, person.id, {*opted_out(connection, person.id), *lease.warnings})
    if lease.judgment is None and lease.project.is_open:
        skip = make_answer(lease.project.config.task, {"outcome": "skip"}, lease.completions, lease.prompt)
        site.leases.submit(lease_id, person.id, Given(answer=skip))
    return RedirectResponse(f"/projects/{lease.project.id}?why=opted-out", status_code=303)


@router.get("/account/about-you")
def about_page(request: Request, site: SiteDep, person: Anyone) -> Response:
    """Ask what people may tell of themselves; nothing is chosen for them but what they said before."""
    key = stored_demographics_key(site.store.secrets)
    with site.store.database.reading() as connection:
        said = people.demographics_of(connection, person.id, key) if key else {}
    return _about(request, site, form_fields(said), has_said=bool(said))


def _about(
    request: Request, site: Site, fields: dict[str, str], *, has_said: bool = False, problem: str = "", done: str = ""
) -> Response:
    with site.store.database.reading() as connection:
        asked = people.current_consent_text(connection, "demographics")
    return site.page(
        request, "about_you.html.jinja", 422 if problem else 200, asked=asked, questions=QUESTIONS, fields=fields,
        not_said=NOT_SAID, has_said=has_said, problem=problem, done=done,
    )  # fmt: skip


@router.post("/account/about-you")
def tell(request: Request, site: SiteDep, form: FormDep, person: Anyone) -> Response:
    """Keep what the person tells, apart from who they are; a blank form is fine, and clears what was there."""
    limit(site, f"about {person.id}", most=60, window_s=_HOUR)
    fields = texts_of(form)
    try:
        said = answers(fields)
    except DataError as error:
        return _about(request, site, fields, problem=f"{error}")
    with site.store.database.writing() as connection:
        asked = people.current_consent_text(connection, "demographics")
        if asked is None:
            said = {}
        elif said and text_of(form, "agreed") != asked.sha256:
            return _about(request, site, fields, problem="Nothing was kept: mark that you agree, or leave all blank.")
        elif said and people.needs_consent(connection, person.id, "demographics"):
            people.give_consent(connection, person.id, asked)
        if said:
            key = read_demographics_key(demographics_key_path(site.store.secrets), create=True)
            people.set_demographics(connection, person.id, said, key)
    if not said:
        return _take_back(request, site, person.id)
    done = f"Kept: {len(said)} of {len(QUESTIONS)} answers. You can change them or take them back here."
    return _about(request, site, form_fields(said), has_said=True, done=done)


@router.post("/account/about-you/take-back")
def take_back(request: Request, site: SiteDep, person: Anyone) -> Response:
    """Delete what the person told of themselves; their judgments stay."""
    limit(site, f"about {person.id}", most=60, window_s=_HOUR)
    return _take_back(request, site, person.id)


def _take_back(request: Request, site: Site, person_id: str) -> Response:
    key = stored_demographics_key(site.store.secrets)
    with site.store.database.writing() as connection:
        actor = audit.reference(connection, person_id)
        count = people.withdraw(connection, person_id, "demographics", key, actor=actor)
    done = f"Deleted: {count} answers. Your judgments stay as they are." if count else "Nothing about you is kept."
    return _about(request, site, {}, done=done)

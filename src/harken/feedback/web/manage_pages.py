"""Pages for owners: projects, tasks, guidelines, members, people, invitations, progress."""

import hashlib
from typing import Annotated, cast, get_args

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.datastructures import FormData, UploadFile

from harken.config.base import build
from harken.config.project import ProjectConfig
from harken.errors import ConfigError, DataError
from harken.feedback.source import ImportSource
from harken.feedback.store import Member, Role
from harken.feedback.tasks import parse_tasks
from harken.feedback.web.project_form import KINDS, SCOPES, project_values, work_fields, work_values
from harken.feedback.web.security import FormDep, OwnerDep, ReviewerDep, text_of, texts_of
from harken.feedback.web.site import Site, SiteDep

router = APIRouter(prefix="/manage")


@router.get("")
def overview(request: Request, site: SiteDep, owner: OwnerDep) -> Response:
    """Show all projects and the form for a new one."""
    del owner
    return _overview(request, site)


def _overview(request: Request, site: Site, problem: str = "", fields: FormData | None = None) -> Response:
    projects = [(project, site.projects.progress(project.id)) for project in site.projects.all()]
    status = 422 if problem else 200
    values = texts_of(fields) if fields else {}
    return site.page(
        request, "manage.html.jinja", status, projects=projects, kinds=KINDS, scopes=SCOPES, problem=problem,
        fields=values,
    )  # fmt: skip


@router.post("/projects")
def make_project(request: Request, site: SiteDep, form: FormDep, owner: OwnerDep) -> Response:
    """Make a project."""
    try:
        config = build(ProjectConfig, project_values(form), where="project")
        project = site.projects.make(text_of(form, "name"), config, owner, text_of(form, "guideline"))
    except (ConfigError, DataError) as error:
        return _overview(request, site, f"{error}", form)
    return RedirectResponse(f"/manage/projects/{project.id}", status_code=303)


@router.get("/projects/{project_id}")
def manage_project(request: Request, site: SiteDep, owner: OwnerDep, project_id: str) -> Response:
    """Show one project with its progress and all that can be changed."""
    del owner
    return _project(request, site, project_id)


def _project(
    request: Request,
    site: Site,
    project_id: str,
    *,
    problem: str = "",
    notice: str = "",
    fields: dict[str, str] | None = None,
) -> Response:
    project = site.projects.get(project_id)
    return site.page(
        request,
        "manage_project.html.jinja",
        422 if problem else 200,
        project=project,
        progress=site.projects.progress(project_id),
        people={one.id: one for one in site.accounts.everyone()},
        members=site.projects.members(project_id),
        fields=fields or work_fields(project.config),
        problem=problem,
        notice=notice,
    )


@router.get("/projects/{project_id}/progress.json")
def progress_json(site: SiteDep, person: ReviewerDep, project_id: str) -> Response:
    """Return how far a project is, for scripts."""
    del person
    site.projects.get(project_id)
    return JSONResponse(site.projects.progress(project_id).model_dump(mode="json"))


@router.post("/projects/{project_id}/tasks")
def add_tasks(request: Request, site: SiteDep, form: FormDep, owner: OwnerDep, project_id: str) -> Response:
    """Add the tasks of an uploaded file."""
    del owner
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        return _project(request, site, project_id, problem="Choose a file first.")
    content = upload.file.read()
    # The name is only shown and stored, never used as a path.
    name = "".join(letter for letter in (upload.filename or "upload").rpartition("/")[2] if letter.isprintable())[:100]
    try:
        lines = parse_tasks(content, site.projects.get(project_id).config.task, name=name)
        source = ImportSource("tasks", name, hashlib.sha256(content).hexdigest())
        new, known = site.projects.add_tasks(project_id, lines, source)
    except DataError as error:
        return _project(request, site, project_id, problem=f"Nothing was added. {error}")
    notice = f"{new} tasks added; {known} were there already."
    return _project(request, site, project_id, notice=notice)


@router.post("/projects/{project_id}/guideline")
def set_guideline(site: SiteDep, form: FormDep, owner: OwnerDep, project_id: str) -> Response:
    """Write a new version of the guideline."""
    site.projects.set_guideline(project_id, text_of(form, "guideline").replace("\r\n", "\n"), owner)
    return RedirectResponse(f"/manage/projects/{project_id}", status_code=303)


@router.post("/projects/{project_id}/settings")
def set_settings(request: Request, site: SiteDep, form: FormDep, owner: OwnerDep, project_id: str) -> Response:
    """Change how work is given out; what is asked stays."""
    try:
        values = {"task": site.projects.get(project_id).config.task.model_dump(), **work_values(form)}
        site.projects.set_config(project_id, build(ProjectConfig, values, where="project"), owner)
    except (ConfigError, DataError) as error:
        return _project(request, site, project_id, problem=f"{error}", fields=texts_of(form))
    return RedirectResponse(f"/manage/projects/{project_id}", status_code=303)


@router.post("/projects/{project_id}/state")
def set_state(site: SiteDep, form: FormDep, owner: OwnerDep, project_id: str) -> Response:
    """Open or close a project."""
    site.projects.set_open(project_id, text_of(form, "state") == "open", owner)
    return RedirectResponse(f"/manage/projects/{project_id}", status_code=303)


@router.post("/projects/{project_id}/members")
def set_member(request: Request, site: SiteDep, form: FormDep, owner: OwnerDep, project_id: str) -> Response:
    """Give a person a share in a project."""
    limits: dict[str, int | None] = {}
    for name in ("max_tasks", "max_tasks_a_day"):
        text = text_of(form, name).strip()
        if text and not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
            return _project(request, site, project_id, problem=f"{text[:20]!r} is no limit; give a whole number.")
        limits[name] = int(text) if text else None
    person_id = text_of(form, "person_id")
    if person_id not in {one.id for one in site.accounts.everyone()}:
        return _project(request, site, project_id, problem="Choose a person.")
    if "remove" in form:
        site.projects.remove_member(project_id, person_id, owner)
        return RedirectResponse(f"/manage/projects/{project_id}", status_code=303)
    pools = tuple(name.strip() for name in text_of(form, "pools").split(",") if name.strip())
    site.projects.set_member(
        project_id, Member(person_id=person_id, pools=pools, is_qualified="is_qualified" in form, **limits), owner
    )
    return RedirectResponse(f"/manage/projects/{project_id}", status_code=303)


@router.get("/people")
def people(request: Request, site: SiteDep, owner: OwnerDep) -> Response:
    """Show everybody with an account."""
    del owner
    return _people(request, site)


def _people(request: Request, site: Site, *, link: str = "", role: str = "", problem: str = "") -> Response:
    everyone = site.accounts.everyone()
    status = 422 if problem else 200
    return site.page(
        request, "people.html.jinja", status, everyone=everyone, link=link, role=role, problem=problem,
        roles=get_args(Role),
    )  # fmt: skip


def _role(form: FormDep) -> Role:
    role = text_of(form, "role")
    if role not in get_args(Role):
        raise DataError(f"{role[:20]!r} is no role; expected one of {', '.join(get_args(Role))}")
    return cast("Role", role)


RoleDep = Annotated[Role, Depends(_role)]


@router.post("/people/invite")
def invite(request: Request, site: SiteDep, owner: OwnerDep, role: RoleDep) -> Response:
    """Make an invitation; its link is shown this once."""
    token = site.accounts.invite(role, owner)
    return _people(request, site, link=f"{site.address}/join/{token}", role=role)


@router.post("/people/{person_id}")
def change_person(
    request: Request, site: SiteDep, owner: OwnerDep, form: FormDep, role: RoleDep, person_id: str
) -> Response:
    """Change a role, or close or open an account."""
    try:
        site.accounts.change(person_id, owner, role=role, disabled="disabled" in form)
    except DataError as error:
        return _people(request, site, problem=f"{error}")
    return RedirectResponse("/manage/people", status_code=303)

"""The REST API: projects, tasks, claims, judgments, exports and figures for programs that carry a token.

A browser's cookie opens nothing here, so no other site's page can make a browser act.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from harken.config.base import build
from harken.config.project import ProjectConfig
from harken.errors import DataError
from harken.feedback.source import ImportSource
from harken.feedback.store import Person, Progress, Project, Role
from harken.feedback.store.streams import Exported, TaskState
from harken.feedback.tasks import check_task
from harken.feedback.web.api_models import (
    Added,
    Claim,
    Handed,
    Me,
    NewProject,
    NewTasks,
    Problem,
    ProjectShown,
    Receipt,
)
from harken.feedback.web.figures import figures_of
from harken.feedback.web.kinds import BadForm
from harken.feedback.web.security import API, Forbidden, LoginNeeded, address_of, limit
from harken.feedback.web.site import Site, SiteDep
from harken.feedback.web.work_pages import given_of
from harken.records import content_id

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No valid token."},
    403: {"model": Problem, "description": "The token's role or project does not allow it."},
    404: {"model": Problem, "description": "There is no such thing, or it is not yours."},
    422: {"model": Problem, "description": "The request does not say what is needed."},
    429: {"model": Problem, "description": "Too often; `Retry-After` says when to come again."},
}
router = APIRouter(prefix=f"{API}/v1", responses=_ERRORS)
schema_router = APIRouter(prefix=API)

MAX_A_MINUTE = 1200
"""Requests of one program."""
_MINUTE = 60
_HOUR = 3600


@dataclass(frozen=True)
class Caller:
    """A program with a valid token."""

    person: Person
    project_id: str | None

    def project(self, site: Site, project_id: str) -> Project:
        """Return a project that the token opens.

        Raises:
            Forbidden: it opens another one only.
            HTTPException: there is none of this id.
        """
        if self.project_id not in (None, project_id):
            raise Forbidden("this token is for another project")
        try:
            return site.projects.get(project_id)
        except DataError as error:
            raise HTTPException(404, f"{error}") from error


def allow(*roles: Role) -> Callable[[Request, Site], Caller]:
    """Return what gives a handler the program that asks, and refuses all but these roles."""

    def caller(request: Request, site: SiteDep) -> Caller:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        found = site.tokens.open(token.strip()) if scheme.lower() == "bearer" and token.strip() else None
        if found is None:
            limit(site, f"api address {address_of(request)}", most=60, window_s=_MINUTE)
            raise LoginNeeded("send a valid token: Authorization: Bearer harken_...")
        person, project_id = found
        limit(site, f"api {person.id}", most=MAX_A_MINUTE, window_s=_MINUTE)
        if person.role not in roles:
            raise Forbidden(f"this needs a token with the role {' or '.join(roles)}; this one is {person.role}")
        return Caller(person, project_id)

    return caller


AnyCaller = Annotated[Caller, Depends(allow("owner", "reviewer", "annotator"))]
ReviewerCaller = Annotated[Caller, Depends(allow("owner", "reviewer"))]
OwnerCaller = Annotated[Caller, Depends(allow("owner"))]


@schema_router.get("/openapi.json", include_in_schema=False)
def schema() -> JSONResponse:
    """Return the description of this API; it tells nothing of what is in the store."""
    return JSONResponse(describe())


@router.get("/me")
def me(caller: AnyCaller) -> Me:
    """Tell whose token this is and what it opens."""
    return Me(name=caller.person.name, role=caller.person.role, project_id=caller.project_id)


@router.get("/projects")
def list_projects(site: SiteDep, caller: AnyCaller) -> list[ProjectShown]:
    """List the projects that the token opens, oldest first."""
    return [ProjectShown.of(one) for one in site.projects.all() if caller.project_id in (None, one.id)]


@router.post("/projects", status_code=201)
def make_project(site: SiteDep, caller: OwnerCaller, new: NewProject) -> ProjectShown:
    """Make a project, open for work. Needs a token for all projects."""
    if caller.project_id is not None:
        raise Forbidden("this token is for one project only")
    config = build(ProjectConfig, new.config, where="config")
    return ProjectShown.of(site.projects.make(new.name, config, caller.person, new.guideline))


@router.get("/projects/{project_id}")
def show_project(site: SiteDep, caller: AnyCaller, project_id: str) -> ProjectShown:
    """Show one project."""
    return ProjectShown.of(caller.project(site, project_id))


@router.get("/projects/{project_id}/progress")
def show_progress(site: SiteDep, caller: ReviewerCaller, project_id: str) -> Progress:
    """Tell how far a project is."""
    return site.projects.progress(caller.project(site, project_id).id)


@router.get("/projects/{project_id}/figures")
def show_figures(site: SiteDep, caller: ReviewerCaller, project_id: str) -> dict[str, Any]:
    """Return the numbers of the dashboard: throughput, agreement, people, time, gold, position and length."""
    return figures_of(site, caller.project(site, project_id))


@router.post("/projects/{project_id}/tasks", status_code=201)
def add_tasks(site: SiteDep, caller: OwnerCaller, project_id: str, new: NewTasks) -> Added:
    """Add tasks: all of them, or none."""
    project = caller.project(site, project_id)
    for number, line in enumerate(new.tasks):
        check_task(line, project.config.task, f"tasks[{number}]")
    digest = content_id("tasks", [line.model_dump(mode="json") for line in new.tasks])
    source = ImportSource("tasks", f"API, {caller.person.name}", digest)
    num_new, num_known = site.projects.add_tasks(project.id, new.tasks, source)
    return Added(num_added=num_new, num_already_there=num_known)


@router.get("/projects/{project_id}/tasks")
def list_tasks(
    site: SiteDep,
    caller: ReviewerCaller,
    project_id: str,
    after: Annotated[int, Query(ge=-1)] = -1,
    most: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[TaskState]:
    """List tasks in their order; go on with `after` = the last one's position."""
    return site.streams.tasks(caller.project(site, project_id).id, after, most)


@router.get("/projects/{project_id}/tasks/{task_id}")
def show_task(site: SiteDep, caller: ReviewerCaller, project_id: str, task_id: str) -> TaskState:
    """Tell how far one task is."""
    found = site.streams.task(caller.project(site, project_id).id, task_id)
    if found is None:
        raise HTTPException(404, f"there is no task {task_id!r} in this project")
    return found


@router.get("/projects/{project_id}/export/{what}", response_class=StreamingResponse)
def export(site: SiteDep, caller: OwnerCaller, project_id: str, what: Exported) -> StreamingResponse:
    """Stream one kind of record as JSON Lines; take judgments first, then completions and prompts."""
    project = caller.project(site, project_id)
    limit(site, f"export {caller.person.id}", most=60, window_s=_HOUR)
    lines = site.streams.export(project.id, what, caller.person)
    return StreamingResponse(_pieces(lines), media_type="application/x-ndjson")


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Yield many lines at once: each piece costs a switch of threads."""
    while batch := list(itertools.islice(lines, 200)):
        yield "".join(f"{line}\n" for line in batch)


@router.post("/projects/{project_id}/claims", status_code=201)
def claim(site: SiteDep, caller: AnyCaller, project_id: str) -> Claim:
    """Take a task: the one not finished yet, else a new one. 409 says why there is none."""
    return Claim.of(site.leases.claim(caller.project(site, project_id).id, caller.person.id))


@router.get("/claims/{claim_id}")
def show_claim(site: SiteDep, caller: AnyCaller, claim_id: str) -> Claim:
    """Show a task that was taken."""
    lease = site.leases.get(claim_id, caller.person.id)
    caller.project(site, lease.project.id)
    return Claim.of(lease)


@router.post("/claims/{claim_id}/heartbeat")
def heartbeat(site: SiteDep, caller: AnyCaller, claim_id: str) -> Claim:
    """Keep a task that is being worked on."""
    caller.project(site, site.leases.get(claim_id, caller.person.id).project.id)
    return Claim.of(site.leases.keep(claim_id, caller.person.id))


@router.post("/claims/{claim_id}/judgment", status_code=201)
def hand_in(site: SiteDep, caller: AnyCaller, claim_id: str, handed: Handed) -> Receipt:
    """Hand in the answer to a task. The same answer again gives the same receipt; another one is refused with 409."""
    limit(site, f"submit {caller.person.id}", most=300, window_s=_MINUTE)
    lease = site.leases.get(claim_id, caller.person.id)
    caller.project(site, lease.project.id)
    beside = {"rationale": handed.rationale, "flag_reason": handed.flag_reason, "flag_note": handed.flag_note}
    if handed.active_s is not None:
        beside["active_s"] = f"{handed.active_s:.3f}"
    if handed.replaces is not None:
        beside["replaces"] = handed.replaces
    fields = {"outcome": "answer", **handed.fields, **beside}
    try:
        given = given_of(lease, FormData(fields), fields)
    except BadForm as error:
        raise HTTPException(422, f"{error}") from error
    return Receipt(judgment_id=site.leases.submit(claim_id, caller.person.id, given).id)


def describe() -> dict[str, Any]:
    """Return the description of the API in OpenAPI's format; its pages are no part of it."""
    found = get_openapi(
        title="Harken",
        version="1",
        description="Projects, tasks, claims, judgments, exports and figures of a Harken web app.",
        routes=router.routes,
    )
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return found | {"security": [{"token": []}]}

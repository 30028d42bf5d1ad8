"""Pages on which people work: their projects, a task, what they answered, what all answered (for reviewers)."""

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData

from harken.feedback.store import Given, Lease, NoTask, Project
from harken.feedback.web.kinds import BadForm, fill_form, make_answer
from harken.feedback.web.security import Anyone, FormDep, ReviewerDep, Worker, limit, text_of, texts_of
from harken.feedback.web.site import Site, SiteDep
from harken.records import Flag

router = APIRouter()

MAX_NOTE = 20_000
"""Longest rationale or note in characters."""
_REASONS = {
    "broken": "The task is broken",
    "harmful": "Harmful or upsetting",
    "private": "Private data of somebody",
    "other": "Something else",
}
WHY_NO_TASK = {
    "closed": "This project is closed. Your answers are kept.",
    "members": "Only members can work on this project. Ask its owner to add you.",
    "limit": "You have done as many tasks as one person may do here. Thank you!",
    "day": "You have done as many tasks as one person may do in a day. Come back tomorrow.",
    "unqualified": "This project is for people who answer its first tasks as expected. Ask its owner about yours.",
    "opted-out": "You get no more tasks of this kind. You can change that under your name, at the top.",
    "empty": "There is nothing to do for you at the moment. Thank you for what you did!",
}
_A_PAGE = 50
"""Answers on one page."""
_DRAFT = TypeAdapter(dict[str, str])


@router.get("/")
def home(request: Request, site: SiteDep, person: Anyone) -> Response:
    """Show the projects a person can work on."""
    projects = [
        (project, site.leases.count_of(project.id, person.id))
        for project in site.projects.all()
        if person.role != "annotator" or _is_for(site, project, person.id)
    ]
    chat_project = site.chat.project_id if site.chat else ""
    return site.page(request, "home.html.jinja", projects=projects, chat_project=chat_project)


def _is_for(site: Site, project: Project, person_id: str) -> bool:
    if project.config.access == "everyone":
        return True
    return any(member.person_id == person_id for member in site.projects.members(project.id))


@router.get("/projects/{project_id}")
def project_page(request: Request, site: SiteDep, person: Anyone, project_id: str, why: str = "") -> Response:
    """Show what a project asks, and the way in; `why` says why there is no task."""
    project = site.projects.get(project_id)
    done = site.leases.count_of(project.id, person.id)
    return site.page(request, "project.html.jinja", project=project, done=done, notice=WHY_NO_TASK.get(why, ""))


@router.post("/projects/{project_id}/next")
def next_task(site: SiteDep, person: Worker, project_id: str) -> Response:
    """Take a task and go to it."""
    return _go_on(site, person.id, project_id, "")


def _go_on(site: Site, person_id: str, project_id: str, saved: str) -> Response:
    try:
        lease_id = site.leases.take(project_id, person_id)
    except NoTask as error:
        return RedirectResponse(f"/projects/{project_id}?why={error.why}", status_code=303)
    return RedirectResponse(f"/tasks/{lease_id}{f'?saved={saved}' if saved else ''}", status_code=303)


@router.get("/tasks/{lease_id}")
def task_page(request: Request, site: SiteDep, person: Worker, lease_id: str, saved: str = "") -> Response:
    """Show a task: to be answered, or answered and to be changed."""
    lease = site.leases.keep(lease_id, person.id)
    return _show(request, site, lease, _fields_of(lease), saved=saved)


def _fields_of(lease: Lease) -> dict[str, str]:
    if lease.judgment is None:
        try:
            return _DRAFT.validate_json(lease.draft or "{}")
        except ValidationError:
            return {}  # a draft by an older version of the page
    shown = tuple(completion.id for completion in lease.completions)
    fields = fill_form(lease.project.config.task, lease.judgment.answer, shown)
    fields["rationale"] = lease.judgment.rationale
    for flag in lease.judgment.flags or ():
        fields |= {"flag_reason": flag.reason, "flag_note": flag.note}
    return fields


def _show(
    request: Request,
    site: Site,
    lease: Lease,
    fields: dict[str, str],
    *,
    saved: str = "",
    problem: str = "",
    status: int = 200,
) -> Response:
    task = lease.project.config.task
    return site.page(
        request,
        "task.html.jinja",
        status,
        lease=lease,
        project=lease.project,
        task=task,
        kind=task.kind,
        fields=fields,
        saved=saved if len(saved) == 32 and saved.isalnum() else "",
        problem=problem,
        reasons=_REASONS,
        done=site.leases.count_of(lease.project.id, lease.person_id),
    )


@router.post("/tasks/{lease_id}")
def submit(request: Request, site: SiteDep, form: FormDep, person: Worker, lease_id: str) -> Response:
    """Save an answer, and go on to the next task."""
    lease = site.leases.get(lease_id, person.id)
    fields = texts_of(form)
    try:
        given = given_of(lease, form, fields)
    except BadForm as error:
        return _show(request, site, lease, fields, problem=f"{error}", status=422)
    # One transaction, so that those who write wait for each other once and the disk is waited for once.
    with site.store.database.writing():
        limit(site, f"submit {person.id}", most=300, window_s=60)
        site.leases.submit(lease_id, person.id, given)
        return _go_on(site, person.id, lease.project.id, lease_id)


def given_of(lease: Lease, form: FormData, fields: dict[str, str]) -> Given:
    """Return what a form gives to a task.

    Raises:
        BadForm: the form is not complete, or a text is too long.
    """
    config = lease.project.config
    answer = make_answer(config.task, fields, lease.completions, lease.prompt)
    rationale, note = note_of(form, "rationale"), note_of(form, "flag_note")
    if config.rationale == "required" and not rationale and fields.get("outcome") == "answer":
        raise BadForm("Say why in a few words: this project asks for the reasons.")
    reason = text_of(form, "flag_reason")
    if reason and reason not in _REASONS:
        raise BadForm("Choose one of the reasons for the flag.")
    flags = (Flag.model_validate({"reason": reason, "note": note}),) if reason else ()
    return Given(
        answer=answer,
        rationale=rationale,
        flags=flags,
        active_s=_seconds(text_of(form, "active_s")),
        replaces=text_of(form, "replaces") or None,
    )


def note_of(form: FormData, name: str) -> str:
    """Return what was written beside an answer.

    Raises:
        BadForm: it is too long.
    """
    text = text_of(form, name).replace("\r\n", "\n").strip()
    if len(text) > MAX_NOTE:
        raise BadForm(f"Reasons and notes have at most {MAX_NOTE} characters. Shorten yours; it is still here.")
    return text


def _seconds(text: str) -> float | None:
    """Return a time that the page measured; None where it could not, or where it is no plausible number."""
    digits = text.replace(".", "", 1)
    seconds = float(text) if digits.isascii() and digits.isdigit() and len(text) < 12 else None
    return seconds if seconds is not None and seconds < 86400 else None


@router.post("/tasks/{lease_id}/draft")
def save_draft(site: SiteDep, form: FormDep, person: Anyone, lease_id: str) -> Response:
    """Keep a task that is being worked on, with what was entered so far; without `keep_only` the form is saved."""
    limit(site, f"draft {person.id}", most=600, window_s=60)
    names = {"csrf", "active_s", "replaces", "keep_only"}
    values = {name: value for name, value in texts_of(form).items() if name not in names}
    draft = None if "keep_only" in form else json.dumps(values, ensure_ascii=False)
    lease = site.leases.keep(lease_id, person.id, draft)
    answer: dict[str, Any] = {"held": lease.is_held, "answered": lease.judgment is not None}
    return JSONResponse({**answer, "seconds_left": round(lease.seconds_left)})


@router.get("/projects/{project_id}/answers")
def own_answers(
    request: Request, site: SiteDep, person: Anyone, project_id: str, before: float | None = None
) -> Response:
    """Show what a person answered last, each with a link to change it."""
    return _answers(request, site, project_id, person.id, before)


@router.get("/projects/{project_id}/review")
def review(
    request: Request, site: SiteDep, person: ReviewerDep, project_id: str, before: float | None = None
) -> Response:
    """Show reviewers what everybody answered last."""
    del person
    return _answers(request, site, project_id, None, before)


def _answers(request: Request, site: Site, project_id: str, person_id: str | None, before: float | None) -> Response:
    project = site.projects.get(project_id)
    names = {one.id: one.name for one in site.accounts.everyone()} if person_id is None else {}
    leases = site.leases.history(project.id, person_id, limit=_A_PAGE, before=before)
    older = leases[-1].ended_at if len(leases) == _A_PAGE else None
    return site.page(
        request, "answers.html.jinja", project=project, leases=leases, names=names, of_all=person_id is None,
        older=older,
    )  # fmt: skip

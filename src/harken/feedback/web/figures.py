"""The dashboard of a project: what its figures are, and the page that shows them."""

import statistics
import threading
from collections import defaultdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from harken.estimates import share
from harken.feedback.store import Project
from harken.feedback.store.figures import PersonCounts, Read
from harken.feedback.web.security import ReviewerDep
from harken.feedback.web.site import Site, SiteDep

router = APIRouter(prefix="/manage")

MAX_MEASURED = 10_000
"""Newest judgments that statistics are made of: all of a million would keep a reader waiting for minutes."""
_KEPT = 50
"""Projects whose figures a process keeps."""
_kept: dict[tuple[str, str], tuple[tuple[int, float], dict[str, Any]]] = {}
_making = threading.Lock()
"""One at a time: ten readers of a page would otherwise make the same numbers ten times side by side."""


def figures_of(site: Site, project: Project) -> dict[str, Any]:
    """Return everything the dashboard shows, as JSON-able values; undefined numbers are None.

    `statistics` is what `harken collect agreement` measures (docs/quality.md), over the newest `MAX_MEASURED`
    judgments. It is made anew when an answer has come; progress and days are always those of now.
    """
    key = (str(site.store.database.engine.url), project.id)
    with _making:
        version = site.figures.version(project.id)
        known = _kept.get(key)
        if known is None or known[0] != version:
            known = (version, _measured(site, project))
            _kept.pop(key, None)
            _kept[key] = known
            if len(_kept) > _KEPT:
                _kept.pop(next(iter(_kept)))
    return {
        "project": {"id": project.id, "name": project.name, "kind": project.config.task.kind},
        "progress": site.projects.progress(project.id).model_dump(mode="json"),
        "days": [day.model_dump(mode="json") for day in site.figures.days(project.id)],
        **known[1],
    }


def _measured(site: Site, project: Project) -> dict[str, Any]:
    read = site.figures.read(project.id, MAX_MEASURED)
    counts = site.figures.people(project.id)
    found = site.measure(read.judgments, read.completions)
    seconds = _seconds(read)
    num_gold, num_right = sum(one.num_gold for one in counts), sum(one.num_gold_right for one in counts)
    return {
        "measured": {"num_judgments": len(read.judgments), "of": read.num_all},
        "seconds": _spread([one for times in seconds.values() for one in times]),
        "gold": share(num_right, num_gold),
        "people": _people(site, counts, found.get("votes"), seconds),
        "statistics": found,
    }


def _seconds(read: Read) -> dict[str, list[float]]:
    times: defaultdict[str, list[float]] = defaultdict(list)
    for judgment in read.judgments:
        if judgment.timing.active_s is not None:
            times[judgment.judge.id].append(judgment.timing.active_s)
    return times


def _spread(times: list[float]) -> dict[str, float] | None:
    """Return the median and the ends of the middle 80 %, in seconds."""
    if len(times) < 2:
        return {"low": times[0], "median": times[0], "high": times[0]} if times else None
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return {"low": tenths[0], "median": statistics.median(times), "high": tenths[-1]}


def _people(
    site: Site, counts: list[PersonCounts], votes: dict[str, Any] | None, seconds: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Return a row for each person: counts, and what the statistics say of them as a judge."""
    names = {one.id: one.name for one in site.accounts.everyone()}
    judges = {row["judge"]: row for row in votes["judges"]} if votes else {}
    rows: list[dict[str, Any]] = []
    for one in counts:
        judge = judges.get(one.person_id, {})
        rows.append(
            {
                "person_id": one.person_id,
                "name": names.get(one.person_id, "?"),
                "num_judgments": one.num_judgments,
                "num_skipped": one.num_skipped,
                "seconds": _spread(seconds.get(one.person_id, [])),
                "gold": share(one.num_gold_right, one.num_gold),
                **{name: judge.get(name) for name in ("agreement", "reliability", "shown_first_wins", "tie_share")},
            }
        )
    return rows


@router.get("/projects/{project_id}/figures")
def figures_page(request: Request, site: SiteDep, person: ReviewerDep, project_id: str) -> Response:
    """Show the dashboard."""
    del person
    project = site.projects.get(project_id)
    return site.page(request, "figures.html.jinja", project=project, figures=figures_of(site, project))


@router.get("/projects/{project_id}/figures.json")
def figures_json(site: SiteDep, person: ReviewerDep, project_id: str) -> Response:
    """Return the same numbers for scripts of somebody who is logged in."""
    del person
    return JSONResponse(figures_of(site, site.projects.get(project_id)))

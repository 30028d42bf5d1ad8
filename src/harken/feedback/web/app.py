"""The app: routes, what errors look like, start and end."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from harken.errors import HarkenError, StorageError, UsageError
from harken.feedback.store import AnsweredOtherwise, NoTask, WrongLease
from harken.feedback.web import account_pages, manage_pages, rights_pages, work_pages
from harken.feedback.web.logs import RequestLog
from harken.feedback.web.security import ConsentNeeded, Forbidden, LoginNeeded, Shell, TooOften, guard
from harken.feedback.web.site import STATIC, Site, UiConfig, open_site

CONFIG_VARIABLE = "HARKEN_UI_CONFIG"
"""Carries the settings to server processes, as JSON."""


def make_app(site: Site) -> FastAPI:
    """Return the app over an open site; the store is closed when the app ends."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        del app
        yield
        site.store.close()

    app = FastAPI(
        title="Harken",
        dependencies=[Depends(guard)],
        lifespan=life,
        # Their pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.site = site
    for module in (account_pages, rights_pages, work_pages, manage_pages):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(HarkenError, _explain)
    app.add_exception_handler(HTTPException, _explain)
    return app


def serve_app(config: UiConfig) -> ASGIApp:
    """Open a store and return what a server runs."""
    # Around the whole app: a middleware would miss the answers to errors that nobody foresaw.
    app = Shell(make_app(open_site(config)))
    return RequestLog(app) if config.log_requests else app


def app_from_environment() -> ASGIApp:
    """Return the app whose settings `harken ui` left for its server processes."""
    return serve_app(UiConfig.model_validate_json(os.environ[CONFIG_VARIABLE]))


def _explain(request: Request, error: Exception) -> Response:
    """Answer a request that went wrong: a page for people, JSON for scripts."""
    status, title, text = _status(error)
    wants_json = "text/html" not in request.headers.get("accept", "text/html")
    if isinstance(error, LoginNeeded) and request.method == "GET" and not wants_json:
        return RedirectResponse(f"/login?next={quote(request.url.path, safe='/')}", status_code=303)
    if isinstance(error, ConsentNeeded) and not wants_json:
        # What was sent is not lost: the page keeps a draft.
        after = request.url.path if request.method == "GET" else "/"
        return RedirectResponse(f"/consent?next={quote(after, safe='/')}", status_code=303)
    headers = {"retry-after": str(int(error.retry_s) + 1)} if isinstance(error, TooOften) else {}
    if wants_json:
        return JSONResponse({"error": text}, status_code=status, headers=headers)
    site: Site = request.app.state.site
    response = site.page(request, "message.html.jinja", status, title=title, text=text, back="/")
    response.headers.update(headers)
    return response


def _status(error: Exception) -> tuple[int, str, str]:
    text = f"{error}"
    text = text[:1].upper() + text[1:].rstrip(".") + "."
    match error:
        case LoginNeeded():
            return 401, "Log in first", "Your session has ended. Log in and go on where you were."
        case ConsentNeeded():
            return 403, "Read this first", "There is something to agree to first: open the start page of the app."
        case Forbidden():
            return 403, "This is not allowed", text
        case WrongLease():
            return 404, "There is no such task", text
        case AnsweredOtherwise():
            return 409, "You answered this before", text
        case NoTask():
            return 409, "Nothing to do", work_pages.WHY_NO_TASK[error.why]
        case TooOften():
            return 429, "Too often", text
        case StorageError():
            return 503, "The store could not be used", "Your answer may not be saved. Go back and send it again."
        case UsageError():
            return 400, "This could not be done", text
        case HTTPException(status_code=404):
            return 404, "There is no such page", "Check the address, or go back to the start."
        case HTTPException():
            return error.status_code, "This could not be done", text
        case _:
            return 500, "Something went wrong", "This is a mistake in Harken, not yours."

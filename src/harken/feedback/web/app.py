"""The app: routes, what errors look like, start and end."""

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from harken.errors import HarkenError, StorageError, UsageError
from harken.feedback.live import ChatRoom
from harken.feedback.store import AnsweredOtherwise, NoTask, WrongLease
from harken.feedback.web import (
    account_pages,
    api,
    care_pages,
    chat_pages,
    connect_pages,
    figures,
    manage_pages,
    rights_pages,
    work_pages,
)
from harken.feedback.web.deliver import Courier
from harken.feedback.web.logs import RequestLog
from harken.feedback.web.security import ConsentNeeded, Forbidden, LoginNeeded, Shell, TooOften, guard, is_api
from harken.feedback.web.site import STATIC, Measure, Site, UiConfig, open_site


def make_app(site: Site) -> FastAPI:
    """Return the app over an open site; the store is closed when the app ends."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        del app
        courier = Courier(site.webhooks, site.secret, site.allowed_hosts)
        courier.start()
        yield
        if site.chat is not None:
            site.chat.close()
        courier.stop()
        courier.join(timeout=2)
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
    pages = [account_pages, rights_pages, care_pages, work_pages, manage_pages, figures, connect_pages]
    for module in (*pages, *([chat_pages] if site.chat else [])):
        app.include_router(module.router, include_in_schema=False)
    app.include_router(api.schema_router)
    app.include_router(api.router)
    app.openapi = api.describe
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(HarkenError, _explain)
    app.add_exception_handler(HTTPException, _explain)
    app.add_exception_handler(RequestValidationError, _explain)
    return app


def serve_app(config: UiConfig, measure: Measure, chat: ChatRoom | None = None) -> ASGIApp:
    """Open a store and return what a server runs.

    Args:
        config: what `harken ui` was told.
        measure: makes the statistics of the dashboards.
        chat: two models to talk with, if there are any.
    """
    # Around the whole app: a middleware would miss the answers to errors that nobody foresaw.
    app = Shell(make_app(dataclasses.replace(open_site(config, measure), chat=chat)))
    return RequestLog(app) if config.log_requests else app


def _explain(request: Request, error: Exception) -> Response:
    """Answer a request that went wrong: a page for people, JSON for scripts."""
    if isinstance(error, RequestValidationError):
        status, title, text = 422, "This could not be done", "Something in the address is not as expected."
    else:
        status, title, text = _status(error)
    wants_json = is_api(request) or "text/html" not in request.headers.get("accept", "text/html")
    if isinstance(error, LoginNeeded) and request.method == "GET" and not wants_json:
        return RedirectResponse(f"/login?next={quote(request.url.path, safe='/')}", status_code=303)
    if isinstance(error, ConsentNeeded) and not wants_json:
        # What was sent is not lost: the page keeps a draft.
        after = request.url.path if request.method == "GET" else "/"
        return RedirectResponse(f"/consent?next={quote(after, safe='/')}", status_code=303)
    headers = {"retry-after": str(int(error.retry_s) + 1)} if isinstance(error, TooOften) else {}
    if is_api(request):
        text = text if status >= 500 else _for_programs(error)
        if status == 401:
            headers["www-authenticate"] = "Bearer"
    if wants_json:
        return JSONResponse({"error": text}, status_code=status, headers=headers)
    site: Site = request.app.state.site
    response = site.page(request, "message.html.jinja", status, title=title, text=text, back="/")
    response.headers.update(headers)
    return response


def _for_programs(error: Exception) -> str:
    """Return what a program is told where a page would speak of the page."""
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        return f"{place}: {problem['msg']}"
    return f"{error.detail if isinstance(error, HTTPException) else error}"


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
            return error.status_code, "This could not be done", f"{error.detail}."
        case _:
            return 500, "Something went wrong", "This is a mistake in Harken, not yours."

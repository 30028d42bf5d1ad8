"""What the server writes down about itself: one JSON object a line on standard error, never what people wrote or read.

Addresses hold invitations and errors quote what they could not read, so neither is written: a request is known by its
route, an error by its type and by where it happened.
"""

import json
import logging
import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harken.feedback.store.adding import utc_now

_REQUESTS = logging.getLogger("harken.requests")
_SERVER_ERROR = 500

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "harken.feedback.web.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "harken": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
"""For `logging.config.dictConfig`."""


class JsonFormatter(logging.Formatter):
    """One JSON object for each entry; of an error its type and the places it came through, not its text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, Any] = {
            "time": utc_now(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "event": record.getMessage().strip(),
        }
        entry |= getattr(record, "facts", {})
        if record.exc_info and (error := record.exc_info[1]) is not None:
            frames = traceback.extract_tb(error.__traceback__)
            entry["error"] = type(error).__name__
            entry["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(entry)


class RequestLog:
    """Around the whole app: an entry for each request with its method, route, status and time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = _SERVER_ERROR

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            facts = {
                "method": scope["method"],
                # With its names instead of values: /join/{token}.
                "route": getattr(scope.get("route"), "path", "none"),
                "status": status,
                "ms": round(1000 * (time.perf_counter() - began), 1),
            }
            _REQUESTS.info("request", extra={"facts": facts})

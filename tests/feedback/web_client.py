"""A browser's part without a browser: cookies, tokens of forms, and the origin that browsers send."""

import re
import secrets
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from harken.dashboard import measure
from harken.feedback.store import Role
from harken.feedback.web.app import make_app
from harken.feedback.web.security import Shell
from harken.feedback.web.site import Site, UiConfig, open_site
from tests.feedback.working import PASSWORD, Workshop

ADDRESS = "https://label.example.org"


class House:
    """One running app, with as many clients as wanted."""

    def __init__(self, folder: Path, store_url: str = "") -> None:
        url = store_url or f"sqlite:///{folder / 'f.db'}"
        self.site: Site = open_site(UiConfig(store=url, address=ADDRESS, secret_file=folder / "secret"), measure)
        self.app: FastAPI = make_app(self.site)
        self.work = Workshop.over(self.site.store)

    def client(self) -> TestClient:
        """A visitor who is not logged in."""
        return TestClient(
            Shell(self.app),
            base_url=ADDRESS,
            follow_redirects=False,
            raise_server_exceptions=False,
            headers={"accept": "text/html"},
        )

    def logged_in(self, name: str) -> TestClient:
        client = self.client()
        done = post(client, "/login", {"name": name, "password": PASSWORD}, page="/login")
        assert done.status_code == 303, done.text
        return client

    def routes(self) -> list[tuple[str, str]]:
        """Method and path of every route there is, a new one included."""
        # Newer versions of FastAPI keep an included router as a part of its own.
        parts = [getattr(part, "original_router", None) or self.app for part in self.app.routes]
        routes = [route for part in parts for route in part.routes if isinstance(route, APIRoute)]
        return sorted({(method, route.path) for route in routes for method in route.methods or ()})

    def bearer(self, role: Role = "annotator", **fields: Any) -> TestClient:
        """A program with a token of its own."""
        owner = next(one for one in self.work.accounts.everyone() if one.role == "owner")
        name = f"program {secrets.token_hex(3)}"
        token, _ = self.site.tokens.make(name, owner, role=role, **fields)
        client = TestClient(Shell(self.app), base_url=ADDRESS, follow_redirects=False, raise_server_exceptions=False)
        client.headers["authorization"] = f"Bearer {token}"
        return client

    def close(self) -> None:
        self.site.store.close()


def token(client: TestClient, page: str) -> str:
    """The token that the forms of a page carry."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get(page, follow_redirects=True).text)
    assert found, page
    return found.group(1)


def post(
    client: TestClient, path: str, fields: dict[str, str] | None = None, *, page: str = "/account", **headers: str
) -> Any:
    """Send a form as a browser would."""
    body = {"csrf": token(client, page), **(fields or {})}
    return client.post(path, data=body, headers={"origin": ADDRESS, **headers})

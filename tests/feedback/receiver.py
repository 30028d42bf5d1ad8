"""A server that webhooks are sent to."""

import http.server
import threading
from collections.abc import Iterator
from typing import TypeAlias

import pytest

Seen: TypeAlias = list[tuple[str, str, bytes]]
"""Path, signature and body of what came."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Notes what comes, and redirects or takes it."""

    seen: Seen

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, self.headers["harken-signature"], body))
        self.send_response(302 if self.path == "/away" else 204)
        if self.path == "/away":
            self.send_header("location", "/target")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def receiver() -> Iterator[tuple[str, Seen]]:
    handler = type("Handler", (_Handler,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.seen  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    server.server_close()
    thread.join()

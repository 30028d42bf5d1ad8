"""A small client of the REST API of `harken ui`, and the check of a webhook's signature.

client = Client("https://label.example.org", token)
client.add_tasks(project["id"], [{"prompt": "Why?", "completions": ["Because.", "No idea."]}])
client.export(project["id"], Path("judgments"))
"""

import hashlib
import hmac
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harken.artifacts import Manifest, atomic_file, write_text
from harken.errors import HarkenError

TIMEOUT_S = 60.0
_CHUNK = 1000
RETRIES = 4
"""Attempts after the first, where the server is busy or away; each request can be sent twice without harm."""


class ApiError(HarkenError):
    """The server refused a request, or could not be reached."""

    def __init__(self, message: str, status: int = 0) -> None:
        """Keep what the server said; status 0: no answer."""
        super().__init__(message)
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a redirect would carry the token to wherever it points."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return nothing, so that the redirect is an error."""
        del args, kwargs


class Client:
    """Requests to one Harken web app with one token.

    Answers are the API's JSON as dicts and lists: docs/api.md.
    """

    def __init__(self, address: str, token: str) -> None:
        """Take the address people type into a browser, and a token of its page "API tokens"."""
        self._base = f"{address.rstrip('/')}/api/v1"
        self._token = token
        self._opener = urllib.request.build_opener(_NoRedirects)

    def me(self) -> dict[str, Any]:
        """Return whose token this is."""
        return self._json("GET", "/me")

    def projects(self) -> list[dict[str, Any]]:
        """Return the projects that the token opens."""
        return self._json("GET", "/projects")

    def make_project(self, name: str, config: Mapping[str, Any], guideline: str = "") -> dict[str, Any]:
        """Make a project; `config` as in docs/config.md, `harken collect tasks`."""
        return self._json("POST", "/projects", {"name": name, "config": dict(config), "guideline": guideline})

    def add_tasks(self, project_id: str, tasks: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Add tasks, 1,000 a request; return how many were added and how many were there already."""
        total = {"num_added": 0, "num_already_there": 0}
        waiting = [dict(task) for task in tasks]
        for start in range(0, len(waiting), _CHUNK):
            answer = self._json(
                "POST", f"/projects/{_part(project_id)}/tasks", {"tasks": waiting[start : start + _CHUNK]}
            )
            for name in total:
                total[name] += answer[name]
        return total

    def tasks(self, project_id: str) -> Iterator[dict[str, Any]]:
        """Yield the tasks of a project with how far they are."""
        after = -1
        while page := self._json("GET", f"/projects/{_part(project_id)}/tasks?after={after}&most={_CHUNK}"):
            yield from page
            after = page[-1]["position"]

    def task(self, project_id: str, task_id: str) -> dict[str, Any]:
        """Return how far one task is."""
        return self._json("GET", f"/projects/{_part(project_id)}/tasks/{_part(task_id)}")

    def progress(self, project_id: str) -> dict[str, Any]:
        """Return how far a project is."""
        return self._json("GET", f"/projects/{_part(project_id)}/progress")

    def figures(self, project_id: str) -> dict[str, Any]:
        """Return the numbers of a project's dashboard."""
        return self._json("GET", f"/projects/{_part(project_id)}/figures")

    def claim(self, project_id: str) -> dict[str, Any] | None:
        """Take a task; None where there is nothing to do for this account."""
        try:
            return self._json("POST", f"/projects/{_part(project_id)}/claims", {})
        except ApiError as error:
            if error.status == http.client.CONFLICT:
                return None
            raise

    def heartbeat(self, claim_id: str) -> dict[str, Any]:
        """Keep a task that is being worked on."""
        return self._json("POST", f"/claims/{_part(claim_id)}/heartbeat", {})

    def hand_in(self, claim_id: str, fields: Mapping[str, str], **beside: Any) -> str:
        """Hand in an answer and return the id of its judgment.

        Args:
            claim_id: of `claim`.
            fields: by kind of task; docs/api.md lists them.
            beside: rationale, flag_reason, flag_note, active_s, replaces.
        """
        body = {"fields": dict(fields), **beside}
        return self._json("POST", f"/claims/{_part(claim_id)}/judgment", body)["judgment_id"]

    def export(self, project_id: str, folder: Path) -> Manifest:
        """Write a project's records into a folder, as training reads them, and return their manifest.

        Raises:
            ApiError: the server refused, or the connection broke; files that are there are whole.
            StorageError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, str] = {}
        counts: dict[str, int] = {}
        # Judgments first: prompts and completions only become more.
        for what in ("judgments", "completions", "prompts"):
            path = folder / f"{what}.jsonl"
            digest, counts[what] = hashlib.sha256(), 0
            with self._open("GET", f"/projects/{_part(project_id)}/export/{what}") as answer, atomic_file(path) as file:
                for line in answer:
                    digest.update(line)
                    file.write(line)
                    counts[what] += 1
            files[path.name] = digest.hexdigest()
        info = {"counts": counts, "project": project_id, "from": self._base}
        manifest = Manifest(kind="feedback", files=files, num_records=sum(counts.values()), info=info)
        write_text(folder / "manifest.json", manifest.model_dump_json(indent=2) + "\n")
        return manifest

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        for attempt in range(RETRIES + 1):
            try:
                with self._open(method, path, body) as answer:
                    return json.load(answer)
            except ApiError as error:
                # Tasks, claims and answers are the same a second time; a project is refused by its name.
                if attempt == RETRIES or error.status not in (0, 429, 503):
                    raise
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _open(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        try:
            return self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(_reason(error), error.code) from None
        except (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError) as error:
            raise ApiError(f"{self._base}: no answer ({error}); is the server running?") from error


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read(10_000).decode(errors="replace")
    try:
        return f"{error.url}: {json.loads(text)['error']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.url}: answered {error.code}"


def _part(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def verify_webhook(secret: str, header: str, body: bytes, *, window_s: float = 300, now: float | None = None) -> bool:
    """Tell whether a request came from the app, as it was sent, and not long ago.

    Args:
        secret: shown when the webhook was made.
        header: `Harken-Signature` of the request, as in `t=1790000000,v1=5f...`.
        body: of the request, byte for byte.
        window_s: seconds that the time in the header may be from now, against requests recorded and sent again; within
            it, remember `Harken-Delivery`.
        now: seconds since 1970; None for the clock.
    """
    parts = {name: value for name, _, value in (part.partition("=") for part in header.split(","))}
    stamp, found = parts.get("t", ""), parts.get("v1", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16 and found.isascii()):
        return False
    expected = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    is_recent = abs((time.time() if now is None else now) - int(stamp)) <= window_s
    return hmac.compare_digest(expected, found) and is_recent

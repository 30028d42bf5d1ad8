"""A server that speaks as much of the hub's protocol as reading one data set takes; HF_ENDPOINT names it."""

import hashlib
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 39 + "1"


class HubServer(ThreadingHTTPServer):
    """One data set and its files; not started."""

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.files = files
        self.listed: list[dict[str, Any]] = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def info(self) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in self.files]
        return {"id": self.name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": siblings}

    def inside(self, folder: str) -> list[dict[str, Any]]:
        """Return what lies in a folder, its folders included."""
        start = f"{folder}/" if folder else ""
        own = [one for one in self.listed if str(one["path"]).startswith(start)]
        names = {start + str(one["path"])[len(start) :].partition("/")[0] for one in own}
        files = [one for one in own if one["path"] in names]
        folders = names - {one["path"] for one in files}
        return [*files, *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        assert isinstance(self.server, HubServer)
        return self.server

    def do_GET(self) -> None:
        path, hub = self.path.partition("?")[0], self.hub
        start = f"/api/datasets/{hub.name}"
        if path in (start, f"{start}/revision/main", f"{start}/revision/{COMMIT}"):
            self._json(hub.info())
        elif path.startswith(f"{start}/tree/{COMMIT}"):
            self._json(hub.inside(path.removeprefix(f"{start}/tree/{COMMIT}").strip("/")))
        elif path.startswith(f"/datasets/{hub.name}/resolve/"):
            inner = path.removeprefix(f"/datasets/{hub.name}/resolve/").partition("/")[2]
            if inner in hub.files:
                self._file(hub.files[inner])
            else:
                self._answer(404, b"", X_Error_Code="EntryNotFound")
        else:
            self._json({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        is_known = self.path.startswith(f"/api/datasets/{self.hub.name}/paths-info/")
        found = [one for one in self.hub.listed if str(one["path"]) in body]
        self._json(found if is_known else {"error": "not found"}, 200 if is_known else 404)

    def _answer(self, code: int, body: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **more}
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, code: int = 200) -> None:
        self._answer(code, json.dumps(value).encode())

    def _file(self, content: bytes) -> None:
        tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            self._answer(200, content, "application/octet-stream", **tag)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), min(int(last or len(content) - 1), len(content) - 1)
        tag["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        self._answer(206, content[start : end + 1], "application/octet-stream", **tag)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

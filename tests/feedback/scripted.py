"""Models of which a test says what they write, and a service that speaks OpenAI's chat API."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harken.errors import SamplerError
from harken.protocols import Piece
from harken.records import Message


@dataclass
class Scripted:
    """A `ChatModel` that writes what a function says, some characters at a time."""

    name: str
    say: Callable[[Sequence[Message]], str]
    size: int = 7
    gate: threading.Event | None = None
    """Waited for before the second piece."""
    asked: list[tuple[Message, ...]] = field(default_factory=list)

    def stream(self, messages: Sequence[Message], *, seed: int, is_stopped: Callable[[], bool]) -> Iterator[Piece]:
        del seed
        self.asked.append(tuple(messages))
        text = self.say(messages)
        if text == "FAIL":
            raise SamplerError(f"model {self.name!r}: the service answered HTTP 500: {self.name} is overloaded")
        for start in range(0, len(text), self.size):
            if start and self.gate is not None:
                while not self.gate.wait(0.02):
                    if is_stopped():
                        return
            if is_stopped():
                return
            yield Piece(text[start : start + self.size])
        yield Piece("", "stop")


class _Handler(BaseHTTPRequestHandler):
    """Answers by the server's script: a text, or one of the words in capitals below."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        assert isinstance(server, _Service)
        server.seen.append({"authorization": self.headers.get("authorization"), **body})
        text = server.say(body)
        if text == "FAIL":
            self._send(500, json.dumps({"error": f"{body['model']} is overloaded"}))
        elif text == "MOVED":
            self.send_response(302)
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
        elif text == "PLAIN":
            choice = {"message": {"content": "not streamed"}, "finish_reason": "stop"}
            self._send(200, json.dumps({"choices": [choice]}))
        else:
            self._stream(text)

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()
        words = text.split(" ")
        server = self.server
        assert isinstance(server, _Service)
        try:
            for number, word in enumerate(words):
                self._event({"delta": {"content": word + (" " if number + 1 < len(words) else "")}})
                time.sleep(server.delay_s)
            if text != "BROKEN":
                self._event({"delta": {}, "finish_reason": "stop"})
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            return  # the reader has stopped

    def _event(self, choice: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


class _Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, say: Callable[[dict[str, Any]], str], delay_s: float, seen: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say, self.delay_s, self.seen = say, delay_s, seen


@contextmanager
def service(
    say: Callable[[dict[str, Any]], str], *, delay_s: float = 0.0, seen: list[dict[str, Any]] | None = None
) -> Iterator[str]:
    """Serve `/v1/chat/completions` as a stream of words; yields the address up to and with /v1."""

    server = _Service(say, delay_s, [] if seen is None else seen)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()

"""A service that speaks OpenAI's chat API (a vLLM server among them) as a model to talk with."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from harken.errors import SamplerError, UsageError
from harken.protocols import Piece
from harken.records import FinishReason, Message, SamplingSettings

KEY_VARIABLE = "HARKEN_MODEL_KEY"
"""Environment variable with the key that every address on the command line gets; it is never stored or shown."""
MAX_CHARACTERS = 400_000
"""Longest answer that is read, whatever the service sends."""
_MAX_LINE = 1_000_000
_SHOWN_OF_ERROR = 300


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key, and what people wrote, to an address that nobody gave."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuse."""
        del args, kwargs


_OPENER = urllib.request.build_opener(_NoRedirect())


@dataclass(frozen=True)
class Endpoint:
    """One model of one service."""

    address: str
    """Up to and with the version, such as http://localhost:8000/v1."""
    model: str
    """Its name there."""
    settings: SamplingSettings
    timeout_s: float = 120.0
    """Longest wait for the next piece."""
    key: str = field(default_factory=lambda: os.environ.get(KEY_VARIABLE, ""), repr=False)

    @property
    def name(self) -> str:
        """What stored completions say of who wrote them: the model's name, not where it runs."""
        return self.model

    def stream(self, messages: Sequence[Message], *, seed: int, is_stopped: Callable[[], bool]) -> Iterator[Piece]:
        """Write the answer to a conversation, piece by piece, as `harken.protocols.ChatModel` says.

        Raises:
            SamplerError: the service cannot be reached, refuses, or sends what is no answer.
        """
        size = 0
        try:
            with _OPENER.open(self._request(messages, seed), timeout=self.timeout_s) as answer:
                for piece in _pieces(answer):
                    if is_stopped():
                        return
                    size += len(piece.text)
                    yield piece if size <= MAX_CHARACTERS else Piece("", "length")
                    if piece.finish_reason is not None or size > MAX_CHARACTERS:
                        return
        except urllib.error.HTTPError as error:
            found = " ".join(error.read(_MAX_LINE).decode(errors="replace").split())[:_SHOWN_OF_ERROR]
            found = found.replace(self.key, "[key]") if self.key else found  # some services repeat it
            raise SamplerError(f"model {self.model!r}: the service answered HTTP {error.code}: {found}") from error
        except (OSError, http.client.HTTPException) as error:
            raise SamplerError(
                f"model {self.model!r}: no answer from its service ({type(error).__name__}: {error}); is it running?"
            ) from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise SamplerError(
                f"model {self.model!r}: its service sent what is no chat completion ({type(error).__name__}: {error})"
            ) from error
        raise SamplerError(f"model {self.model!r}: its service broke off in the middle of the answer")

    def _request(self, messages: Sequence[Message], seed: int) -> urllib.request.Request:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message.model_dump() for message in messages],
            "stream": True,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "max_tokens": self.settings.max_new_tokens,
            # Services take 32 bits at least.
            "seed": seed % 2**31,
        }
        if self.settings.top_k:
            body["top_k"] = self.settings.top_k  # vLLM knows it, OpenAI's API does not
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return urllib.request.Request(f"{self.address}/chat/completions", json.dumps(body).encode(), headers)


def parse_endpoint(text: str, settings: SamplingSettings) -> Endpoint | None:
    """Return the model that ADDRESS#MODEL names; None for a text that is no address.

    Raises:
        UsageError: an address without a model.
    """
    if not text.startswith(("http://", "https://")):
        return None
    address, _, model = text.partition("#")
    if not model or not urlsplit(address).hostname:
        raise UsageError(f"{text}: expected ADDRESS#MODEL, such as http://localhost:8000/v1#my-model")
    return Endpoint(address.rstrip("/"), model, settings)


def _pieces(answer: Any) -> Iterator[Piece]:
    """Yield what a service sends: server-sent events, or one JSON object from a service that cannot stream."""
    if "event-stream" not in (answer.headers.get("Content-Type") or ""):
        choice = json.loads(answer.read(4 * MAX_CHARACTERS))["choices"][0]
        yield Piece(choice["message"]["content"] or "", _reason(choice.get("finish_reason") or "stop"))
        return
    while line := answer.readline(_MAX_LINE):
        name, _, data = line.decode().strip().partition(":")
        if name != "data" or not data.strip():
            continue
        if data.strip() == "[DONE]":
            yield Piece("", "stop")
            return
        sent = json.loads(data)
        if "error" in sent:
            raise ValueError(str(sent["error"])[:_SHOWN_OF_ERROR])
        if sent["choices"]:
            choice = sent["choices"][0]
            yield Piece((choice.get("delta") or {}).get("content") or "", _reason(choice.get("finish_reason")))


def _reason(text: str | None) -> FinishReason | None:
    if text is None:
        return None
    return "length" if text == "length" else "stop"

"""Harken's own sampler as a model to talk with: answers come piece by piece, one at a time."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from harken.lm.chat import Chat
from harken.lm.sample import Sampled, sample_watched
from harken.lm.trunk import Trunk
from harken.protocols import Piece
from harken.records import Message, Prompt, SamplingSettings

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""How a character looks of which not all bytes are there yet."""
_Drawn = queue.SimpleQueue[int | Future[list[Sampled]]]
"""Tokens as they are drawn, and at the end what became of the drawing."""


@dataclass
class TrunkChat:
    """A `harken.protocols.ChatModel` on a trunk in memory; those who ask at the same time wait for each other."""

    trunk: Trunk
    role: str | None
    """Who writes; None is the base itself."""
    settings: SamplingSettings
    name: str
    """What stored completions say of who wrote them."""
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), repr=False)

    def stream(self, messages: Sequence[Message], *, seed: int, is_stopped: Callable[[], bool]) -> Iterator[Piece]:
        """Write the answer to a conversation, piece by piece, as `harken.protocols.ChatModel` says.

        Raises:
            DataError: the conversation leaves no room in the model's context for an answer.
        """
        chat = self.trunk.chat
        room = self.trunk.context_length - self.settings.max_new_tokens
        ids = chat.encode_prompt(Prompt(id="conversation", messages=tuple(messages)), max_length=room)
        drawn: _Drawn = queue.SimpleQueue()
        is_closed = threading.Event()

        def watch(token: int) -> bool:
            drawn.put(token)
            return not (is_closed.is_set() or is_stopped())

        def draw() -> list[Sampled]:
            if is_closed.is_set() or is_stopped():  # while it waited for its turn
                return []
            return [sample_watched(self.trunk, self.role, ids, self.settings, seed=seed, watch=watch)]

        self._thread.submit(draw).add_done_callback(drawn.put)
        try:
            yield from _pieces(chat, drawn, is_stopped)
        finally:
            is_closed.set()


def _pieces(chat: Chat, drawn: _Drawn, is_stopped: Callable[[], bool]) -> Iterator[Piece]:
    """Yield the text of tokens as they come; what later tokens may still change is held back."""
    ids: list[int] = []
    sent = ""
    while True:
        found = drawn.get()
        if is_stopped():
            return
        if isinstance(found, Future):
            (whole,) = found.result()
            yield Piece(chat.decode_completion(whole.token_ids)[len(sent) :], whole.finish_reason)
            return
        ids.append(found)
        text = chat.decode_completion(ids)
        if not text.endswith(_UNFINISHED) and text.startswith(sent) and len(text) > len(sent):
            yield Piece(text[len(sent) :])
            sent = text

"""Live chat: two models answer the same message at the same time, and nobody is told which is which before the vote.

One `Turn` is one message with its two answers. It lives in the process that runs the models; once both answers are
there, or the person has voted, it is a task with a lease in the store like any other.
"""

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from harken.config.live import LiveChatConfig
from harken.errors import HarkenError, UsageError
from harken.feedback.names import Names, Release
from harken.protocols import ChatModel
from harken.records import Completion, FinishReason, Message, Prompt, content_id

_LOG = logging.getLogger("harken.chat")
Moderate = Callable[[str], str | None]
"""Is asked about each text; returns why it may not be sent or shown, None where it may."""
Emit = Callable[[dict[str, Any]], None]
"""Takes what happens in a turn, from any thread."""
_NEW_CHARACTERS = 80
"""So much new text is waited for before the moderation looks at an answer again."""


class NotReady(UsageError):
    """The vote cannot be taken yet, or not at all; the message is for the person."""


@dataclass
class Side:
    """One of the two answers, as far as it has been shown."""

    model: ChatModel
    seed: int
    text: str = ""
    finish_reason: FinishReason | None = None
    is_done: bool = False
    error: str = ""
    name: str = ""
    """A name in the answer that may give its writer away."""


@dataclass
class Turn:
    """One message and its two answers."""

    id: str
    """Also the id of the lease that it becomes."""
    person_id: str
    conversation: str
    messages: tuple[Message, ...]
    sides: tuple[Side, Side]
    """In the order shown, drawn for this turn."""
    emit: Emit
    started_at: float = field(default_factory=time.time)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def prompt(self) -> Prompt:
        """Return the conversation up to and with the message."""
        tags = ("chat", conversation_tag(self.conversation))
        return Prompt(id=content_id("chat", self.id), messages=self.messages, source="chat", tags=tags)

    def completions(self) -> tuple[Completion, ...]:
        """Return what was shown, in the order shown."""
        return tuple(
            Completion(
                id=content_id("chat", self.id, place),
                prompt_id=self.prompt().id,
                message=Message(role="assistant", content=side.text),
                model=side.model.name,
                seed=side.seed,
                finish_reason=side.finish_reason,
            )
            for place, side in enumerate(self.sides, start=1)
        )

    def tags(self) -> tuple[str, ...]:
        """Return what the task is tagged with."""
        named = ("names-a-model",) if any(side.name for side in self.sides) else ()
        return ("chat", conversation_tag(self.conversation), *named)

    @property
    def is_done(self) -> bool:
        """Whether both answers have ended, in whatever way."""
        return all(side.is_done for side in self.sides)

    def stop(self) -> None:
        """Stop both models and keep what was shown, without waiting for them."""
        with self.lock:
            self.stopped.set()
            for place, side in enumerate(self.sides, start=1):
                if not side.is_done:
                    side.is_done = True
                    side.error = "" if side.text else "Stopped before there was an answer."
                    told = {"event": "failed", "message": side.error} if side.error else {"event": "done"}
                    self.emit({**told, "side": place, "reason": "stopped"})

    def cut(self, seen: Sequence[int]) -> None:
        """Stop both models and keep what the person has seen of each answer.

        Raises:
            NotReady: an answer has failed, or nothing of it was seen.
        """
        with self.lock:
            if any(side.error for side in self.sides):
                raise NotReady("One of the models gave no answer, so there is nothing to compare. Send it again.")
            if any(not side.text[:length] for side, length in zip(self.sides, seen, strict=True)):
                raise NotReady("Wait until both have begun to answer.")
            self.stopped.set()
            for side, length in zip(self.sides, seen, strict=True):
                if length < len(side.text) or not side.is_done:
                    side.text, side.finish_reason = side.text[:length], None
                side.is_done = True


def conversation_tag(conversation: str) -> str:
    """Return the tag of all prompts and tasks of one conversation."""
    return f"conversation:{conversation}"


class ChatRoom:
    """Two models, and the turns that they are answering."""

    def __init__(
        self,
        models: tuple[ChatModel, ChatModel],
        project_id: str,
        config: LiveChatConfig,
        *,
        names: Names,
        moderate: Moderate | None = None,
    ) -> None:
        """Open a room.

        Args:
            models: the two.
            project_id: whose tasks the turns become.
            config: limits.
            names: what must not be read before the vote.
            moderate: looks at every message and every answer; None lets all pass.
        """
        self.project_id = project_id
        self.config = config
        self.names = names
        self.moderate = moderate
        self._models = models
        self._turns: dict[str, Turn] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(2 * config.turns_at_once, thread_name_prefix="chat")

    def start(self, person_id: str, conversation: str, messages: Sequence[Message], emit: Emit) -> Turn:
        """Let both models answer; what happens is told to `emit`.

        A turn of the same person that is still being answered is stopped.

        Raises:
            NotReady: too many are being answered, or the moderation refuses the message.
        """
        if self.moderate is not None and (why := self.moderate(messages[-1].content)):
            raise NotReady(f"This message cannot be sent: {why}")
        models = random.SystemRandom().sample(self._models, 2)
        left, right = (Side(model, secrets.randbits(31)) for model in models)
        turn = Turn(secrets.token_hex(16), person_id, conversation, tuple(messages), (left, right), emit)
        with self._lock:
            for other in [one for one in self._turns.values() if one.person_id == person_id]:
                self._drop(other)
            if sum(not one.is_done for one in self._turns.values()) >= self.config.turns_at_once:
                raise NotReady("Many people are chatting at this moment. Send it again in a minute.")
            self._turns[turn.id] = turn
        for place in (0, 1):
            self._threads.submit(self._answer, turn, place)
        return turn

    def turn(self, turn_id: str, person_id: str) -> Turn | None:
        """Return a turn of this person that is in this process."""
        with self._lock:
            found = self._turns.get(turn_id)
        return found if found is not None and found.person_id == person_id else None

    def forget(self, turn: Turn) -> None:
        """End a turn: it is in the store now, or nobody waits for it any more."""
        with self._lock:
            self._drop(turn)

    def close(self) -> None:
        """Stop all models."""
        with self._lock:
            for turn in list(self._turns.values()):
                self._drop(turn)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _drop(self, turn: Turn) -> None:
        turn.stopped.set()
        self._turns.pop(turn.id, None)

    def _answer(self, turn: Turn, place: int) -> None:
        side = turn.sides[place]
        problem = "This is a mistake in Harken, not yours."
        try:
            problem = self._stream(turn, place)
        except HarkenError as error:
            _LOG.warning("a model of the live chat gave no answer: %s", error)
            problem = f"{error}"
        finally:
            with turn.lock:
                if problem and not side.is_done:
                    # The message may name the model, which is not to be known yet.
                    side.error = self.names.masked(problem)
                    side.is_done = True
                    turn.emit({"event": "failed", "side": place + 1, "message": side.error})

    def _stream(self, turn: Turn, place: int) -> str:
        """Pass one answer on; return what went wrong, "" if nothing did."""
        side, release = turn.sides[place], Release(self.names)
        looked_at = 0
        whole = ""
        waiting = ""
        for piece in side.model.stream(turn.messages, seed=side.seed, is_stopped=turn.stopped.is_set):
            if turn.stopped.is_set():
                break
            whole += piece.text
            waiting += piece.text
            is_long = len(whole) > self.config.max_answer
            is_end = piece.finish_reason is not None or is_long
            if self.moderate is not None:
                if len(whole) - looked_at < _NEW_CHARACTERS and not is_end:
                    continue
                looked_at = len(whole)
                if why := self.moderate(whole):
                    return f"The answer was held back: {why}"
            self._show(turn, place, release, waiting, "length" if is_long else piece.finish_reason)
            waiting = ""
            if is_end:
                return "" if side.text.strip() else "The model gave an empty answer."
        return "" if turn.stopped.is_set() else "The model broke off without an end."

    def _show(self, turn: Turn, place: int, release: Release, text: str, reason: FinishReason | None) -> None:
        side = turn.sides[place]
        with turn.lock:
            if side.is_done:
                return  # a vote, or the button that stops, was faster
            is_end = reason is not None
            out = release.feed(text, is_end=is_end)
            if release.name and not side.name:
                side.name = release.name
                turn.emit({"event": "named", "side": place + 1})
            side.text += out
            if out:
                turn.emit({"event": "text", "side": place + 1, "text": out, "end": len(side.text)})
            if is_end and side.text.strip():
                side.finish_reason, side.is_done = reason, True
                turn.emit({"event": "done", "side": place + 1, "reason": reason})

"""Live chat: a message, two answers side by side as they are written, a vote, and on from the answer chosen."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from harken.config.project import ComparisonTask
from harken.feedback.live import ChatRoom, NotReady, Turn, conversation_tag
from harken.feedback.store import Given, Lease
from harken.feedback.store.live import LiveTask, record_turn, turns_of
from harken.feedback.web.kinds import BadForm, make_answer
from harken.feedback.web.render import plain, rich
from harken.feedback.web.security import FormDep, Worker, limit, text_of, texts_of
from harken.feedback.web.site import Site, SiteDep
from harken.feedback.web.work_pages import note_of
from harken.records import Comparison, Message

router = APIRouter(prefix="/chat")

_CONVERSATION = re.compile(r"[0-9a-f]{16}")
_BEAT_S = 10.0
"""A line without meaning is sent so often, or what stands between may take the connection for dead."""


def _room(site: Site) -> ChatRoom:
    if site.chat is None:
        raise HTTPException(404, "there is no live chat here")
    return site.chat


def _check(conversation: str) -> str:
    if not _CONVERSATION.fullmatch(conversation):
        raise HTTPException(404, "there is no such conversation")
    return conversation


def _turns(site: Site, person_id: str, conversation: str) -> list[Lease]:
    project_id = _room(site).project_id
    names = turns_of(site.store.database, project_id, person_id, conversation_tag(conversation))
    return [site.leases.get(name, person_id) for name in names]


def kept_place(lease: Lease) -> int | None:
    """Return the place of the answer that a conversation goes on from; None where neither is.

    After a tie it is the first that was shown: one of them must be taken.
    """
    answer = lease.judgment.answer if lease.judgment is not None else None
    if not isinstance(answer, Comparison) or answer.outcome not in ("win", "tie"):
        return None
    shown = [completion.id for completion in lease.completions]
    return shown.index(answer.winner) + 1 if answer.winner is not None else 1


def _so_far(turns: Sequence[Lease]) -> tuple[Message, ...]:
    """Return the conversation as the models see it: the newest turn of which an answer was kept, with that answer."""
    for lease in reversed(turns):
        if (place := kept_place(lease)) is not None:
            return (*lease.prompt.messages, lease.completions[place - 1].message)
    return ()


@router.get("")
def new_chat(site: SiteDep, person: Worker) -> Response:
    """Begin a conversation; nothing is stored before the first vote, or the first two answers."""
    del person
    _room(site)
    return RedirectResponse(f"/chat/{secrets.token_hex(8)}", status_code=303)


@router.get("/{conversation}")
def chat_page(request: Request, site: SiteDep, person: Worker, conversation: str, saved: str = "") -> Response:
    """Show a conversation: what was said and chosen, and answers that wait for a vote."""
    room = _room(site)
    turns = _turns(site, person.id, _check(conversation))
    waiting = turns[-1] if turns and turns[-1].judgment is None else None
    named = [bool(room.names.find(one.message.content)) for one in waiting.completions] if waiting else [False, False]
    project = site.projects.get(room.project_id)
    return site.page(
        request,
        "chat.html.jinja",
        project=project,
        task=project.config.task,
        conversation=conversation,
        turns=[(lease, kept_place(lease)) for lease in turns if lease.judgment is not None],
        waiting=waiting,
        named=named,
        said=waiting.prompt.messages[-1].content if waiting else "",
        max_message=room.config.max_message,
        saved=any(lease.id == saved for lease in turns),
    )


@router.post("/{conversation}/say")
async def say(site: SiteDep, form: FormDep, person: Worker, conversation: str) -> Response:
    """Take a message and stream both answers as server-sent events."""
    room = _room(site)
    text = text_of(form, "text").replace("\r\n", "\n").strip()
    if not text or len(text) > room.config.max_message:
        raise NotReady(f"a message has 1 to {room.config.max_message} characters; yours has {len(text)}")
    await run_in_threadpool(_count, site, person.id)
    turns = await run_in_threadpool(_turns, site, person.id, _check(conversation))
    if turns and turns[-1].judgment is None:
        raise NotReady("vote on the two answers first; reload the page to see them")
    messages = (*_so_far(turns), Message(role="user", content=text))
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def emit(event: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    turn = await run_in_threadpool(
        room.start,
        person.id,
        conversation,
        messages,
        emit,
    )
    # Understood by nginx: what stands between must not collect the pieces.
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(_stream(room, turn, events), media_type="text/event-stream", headers=headers)


def _count(site: Site, person_id: str) -> None:
    config = _room(site).config
    limit(site, f"chat {person_id}", most=config.turns_a_minute, window_s=60)
    limit(site, f"chat of the day {person_id}", most=config.turns_a_day, window_s=86400)


async def _stream(room: ChatRoom, turn: Turn, events: asyncio.Queue[dict[str, Any]]) -> AsyncGenerator[str]:
    ended = 0
    try:
        yield _event({"event": "turn", "id": turn.id})
        while ended < len(turn.sides):
            try:
                event = await asyncio.wait_for(events.get(), _BEAT_S)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if event["event"] == "text":
                # Escaped here, with what cannot be seen made visible: the page puts it in as it is.
                event["html"] = str(plain(event.pop("text")))
            elif event["event"] == "done":
                side = turn.sides[0] if event["side"] == 1 else turn.sides[1]
                event["html"] = str(rich(side.text))
            ended += event["event"] in ("done", "failed")
            yield _event(event)
    finally:
        if not turn.is_done:  # the page was closed
            room.forget(turn)


def _event(event: dict[str, Any]) -> str:
    return f"event: {event['event']}\ndata: {json.dumps(event)}\n\n"


def _own_turn(site: Site, person_id: str, turn_id: str) -> Turn | None:
    return _room(site).turn(turn_id, person_id)


def _record(site: Site, turn: Turn) -> None:
    shown = LiveTask(
        lease_id=turn.id,
        person_id=turn.person_id,
        project_id=_room(site).project_id,
        prompt=turn.prompt(),
        completions=turn.completions(),
        tags=turn.tags(),
        shown_at=turn.started_at,
    )
    record_turn(site.store.database, shown)
    _room(site).forget(turn)


@router.post("/turns/{turn_id}/stop")
def stop(site: SiteDep, person: Worker, turn_id: str) -> Response:
    """Stop both models; what was shown stays and can be voted on."""
    if (turn := _own_turn(site, person.id, turn_id)) is not None:
        turn.stop()
    return JSONResponse({"stopped": turn is not None})


@router.post("/turns/{turn_id}/keep")
def keep(site: SiteDep, form: FormDep, person: Worker, turn_id: str) -> Response:
    """Put two answers that were read to their end into the store, so that they can be voted on after a restart too."""
    if (turn := _own_turn(site, person.id, turn_id)) is not None and turn.is_done:
        turn.cut(_seen(form))
        _record(site, turn)
    return JSONResponse({"kept": site.leases.get(turn_id, person.id).id})


@router.post("/turns/{turn_id}/vote")
def vote(site: SiteDep, form: FormDep, person: Worker, turn_id: str) -> Response:
    """Save a vote, at any time: what the person has seen of the answers by then is what is stored."""
    limit(site, f"submit {person.id}", most=300, window_s=60)
    turn = _own_turn(site, person.id, turn_id)
    if turn is not None:
        _given(site, form, turn.completions())  # refuse what is no vote before the models are stopped
        turn.cut(_seen(form))
        _record(site, turn)
    lease = site.leases.get(turn_id, person.id)
    judgment = site.leases.submit(turn_id, person.id, _given(site, form, lease.completions))
    return JSONResponse({"receipt": judgment.id, "names": [one.model for one in lease.completions]})


def _given(site: Site, form: FormData, completions: Sequence[Any]) -> Given:
    task = site.projects.get(_room(site).project_id).config.task
    assert isinstance(task, ComparisonTask), "the live chat has a project of comparisons"
    try:
        given = Given(make_answer(task, texts_of(form), tuple(completions)), note_of(form, "rationale"))
    except BadForm as error:
        raise NotReady(f"{error}") from error
    is_win = isinstance(given.answer, Comparison) and given.answer.outcome == "win"
    if is_win and len({one.message.content for one in completions}) == 1:
        raise NotReady("Both answers are the same text; choose “equally good”, or both bad.")
    return given


def _seen(form: Any) -> list[int]:
    """Return how many characters of each answer the page had shown."""
    texts = [text_of(form, f"seen-{place}", "0") for place in (1, 2)]
    return [int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0 for text in texts]

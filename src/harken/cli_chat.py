"""Options of the live chat in `harken ui`, and what they open."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harken.cli_common import model_name, reporter, settings

if TYPE_CHECKING:
    from harken.config import LiveChatConfig
    from harken.feedback.live import ChatRoom, Moderate
    from harken.protocols import ChatModel
    from harken.records import SamplingSettings

ChatOption = Annotated[
    tuple[str, str] | None,
    typer.Option("--chat", metavar="A B", help="Two models for the live chat; ADDRESS#MODEL for one of a service."),
]
ChatSetOption = Annotated[
    list[str] | None,
    typer.Option("--chat-set", metavar="KEY=VALUE", help="Change a setting of the chat; may be given many times."),
]
ChatNamesOption = Annotated[
    Path | None,
    typer.Option("--chat-names", metavar="F", help="Further names, one a line, that answers must not give away."),
]
ChatModerationOption = Annotated[
    str | None,
    typer.Option("--chat-moderation", metavar="F:NAME", help="file.py:function: text to why it is refused, or None."),
]


def open_room(
    store: str, chat: tuple[str, str], changes: list[str] | None, more: Path | None, moderation: str | None
) -> "ChatRoom":
    """Open both models and the project that their votes belong to.

    Args:
        store: URL of the store.
        chat: the two models, as the command line names them.
        changes: of `LiveChatConfig`, as KEY=VALUE.
        more: file with further names, one a line.
        moderation: file.py:function.

    Raises:
        HarkenError: a model cannot be loaded, or the project asks for something else.
    """
    from harken.artifacts import read_text
    from harken.config import LiveChatConfig, ProjectConfig
    from harken.errors import UsageError
    from harken.feedback.live import ChatRoom
    from harken.feedback.names import Names
    from harken.feedback.store import FeedbackStore, Projects
    from harken.records import SamplingSettings

    config = settings(LiveChatConfig, None, changes)
    with FeedbackStore.open(store) as opened:
        projects = Projects(opened.database)
        project = projects.named(config.project) or projects.make(config.project, ProjectConfig())
    if project.config.task.kind != "comparison":
        raise UsageError(f"project {project.name!r} asks for a {project.config.task.kind}; the chat needs a comparison")
    drawing = SamplingSettings(**config.sampling.model_dump())
    names = [model_name(spec) for spec in chat]
    first, second = (_open_chat(name, drawing, config) for name in names)
    listed = read_text(more).splitlines() if more else []
    return ChatRoom((first, second), project.id, config, names=Names(names, listed), moderate=_moderation(moderation))


def _open_chat(name: str, drawing: "SamplingSettings", config: "LiveChatConfig") -> "ChatModel":
    from harken.endpoint import parse_endpoint

    # Services need no torch, which takes seconds to load.
    if (endpoint := parse_endpoint(name, drawing)) is not None:
        return endpoint
    from harken.collecting import open_chat

    return open_chat(name, drawing, chat=config.chat, compute=config.compute, notify=reporter().say)


def _moderation(spec: str | None) -> "Moderate | None":
    if spec is None:
        return None
    from harken.reward.functions import load_function

    path, _, name = spec.rpartition(":")
    return load_function(Path(path), name)

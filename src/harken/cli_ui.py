"""`harken ui`: the web app in which people judge completions."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harken.cli_common import reporter, show

if TYPE_CHECKING:
    from harken.config import LiveChatConfig
    from harken.feedback.live import ChatRoom, Moderate
    from harken.feedback.web.site import UiConfig
    from harken.protocols import ChatModel
    from harken.records import SamplingSettings

GRACE_S = 10
"""Seconds that requests under way get when the server is stopped."""


def ui(
    store: Annotated[
        str,
        typer.Option("--store", metavar="URL", help="Feedback store; one that is not there is made."),
    ] = "sqlite:///feedback.db",
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Network address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to listen on.", min=1, max=65535)] = 8770,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="URL", help="Address people type, where a server with TLS stands in front of this one."
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Server processes.", min=1, max=64)] = 1,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            "--secret-file",
            metavar="F",
            help="The app's secret, made if it is not there; by default beside the SQLite file or in ~/.config/harken.",
        ),
    ] = None,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Allow an address without TLS; passwords are then readable for all.")
    ] = False,
    chat: Annotated[
        tuple[str, str] | None,
        typer.Option("--chat", metavar="A B", help="Two models for the live chat; ADDRESS#MODEL for one of a service."),
    ] = None,
    chat_set: Annotated[
        list[str] | None,
        typer.Option("--chat-set", metavar="KEY=VALUE", help="Change a setting of the chat; may be given many times."),
    ] = None,
    chat_names: Annotated[
        Path | None,
        typer.Option("--chat-names", metavar="F", help="Further names, one a line, that answers must not give away."),
    ] = None,
    chat_moderation: Annotated[
        str | None,
        typer.Option(
            "--chat-moderation", metavar="F:NAME", help="file.py:function: text to why it is refused, or None."
        ),
    ] = None,
) -> None:
    """Serve the web app: people judge, owners set up projects and see progress.

    The first start prints a link that makes the owner's account. Ctrl-C stops the server; nothing that was confirmed is
    lost. With --chat two models answer each message side by side, blind, and people vote; services get the key in
    HARKEN_MODEL_KEY.
    """
    from harken.errors import UsageError
    from harken.feedback.web.site import UiConfig, check_address, first_steps, read_secret

    if chat and workers > 1:
        raise UsageError(
            "--chat runs the models in this process: leave --workers out, and start a second server for it"
        )
    if not chat and (chat_set or chat_names or chat_moderation):
        raise UsageError("--chat-set, --chat-names and --chat-moderation are for --chat: give that too")

    shown_host = f"[{host}]" if ":" in host else host
    where = check_address(address or f"http://{shown_host}:{port}", insecure=insecure_http)
    config = UiConfig(store=store, address=where, secret_file=secret_file or _secret_file(store))
    read_secret(config.secret_file)
    link = first_steps(config)
    show(f"first start: make the owner's account at {link}" if link else f"serving {where}")
    room = _open_room(store, chat, chat_set, chat_names, chat_moderation) if chat else None
    reporter().say("Ctrl-C stops the server")
    _serve(config, host, port, workers, room)


def _open_room(
    store: str, chat: tuple[str, str], changes: list[str] | None, more: Path | None, moderation: str | None
) -> "ChatRoom":
    """Open both models and the project that their votes belong to."""
    from harken.artifacts import read_bytes
    from harken.cli_common import model_name, settings
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
    listed = read_bytes(more).decode().splitlines() if more else []
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


def _serve(config: "UiConfig", host: str, port: int, workers: int, room: "ChatRoom | None") -> None:
    import uvicorn

    from harken.errors import StorageError
    from harken.feedback.web.app import CONFIG_VARIABLE, serve_app

    try:
        if workers == 1:
            app = serve_app(config, room)
        else:
            os.environ[CONFIG_VARIABLE] = config.model_dump_json()
            app = "harken.feedback.web.app:app_from_environment"
        uvicorn.run(
            app,
            factory=workers > 1,
            workers=workers,
            host=host,
            port=port,
            log_level="warning",
            # Addresses hold invitations, and a log of who judged when is nobody's business.
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    except KeyboardInterrupt:
        show("stopped")
    except SystemExit as error:
        if error.code:
            raise StorageError(f"the server could not start at {host}:{port}: see the line above") from error


def _secret_file(store: str) -> Path:
    from harken.records import content_id

    if store.startswith("sqlite:///"):
        return Path(f"{store.removeprefix('sqlite:///')}.secret")
    return Path.home() / ".config" / "harken" / f"secret-{content_id(store)}"

"""`harken ui`: the web app in which people judge completions."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harken.cli_chat import ChatModerationOption, ChatNamesOption, ChatOption, ChatSetOption, open_room
from harken.cli_common import reporter, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harken.feedback.live import ChatRoom
    from harken.feedback.web.site import UiConfig
    from harken.records import Completion, Judgment

CONFIG_VARIABLE = "HARKEN_UI_CONFIG"
"""Carries the settings to server processes, as JSON."""
GRACE_S = 10
"""Seconds that requests under way get when the server is stopped."""

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="Address people type, where a server with TLS stands in front of this one."
    ),
]
SecretOption = Annotated[
    Path | None,
    typer.Option(
        "--secret-file",
        metavar="F",
        help="The app's secret, made if it is not there; by default beside the SQLite file or in ~/.config/harken.",
    ),
]
HostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="HOST",
        help="Host in a private network, or without TLS, that webhooks may go to; can be given more than once.",
    ),
]


def ui(
    store: Annotated[
        str,
        typer.Option("--store", metavar="URL", help="Feedback store; one that is not there is made."),
    ] = "sqlite:///feedback.db",
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Network address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to listen on.", min=1, max=65535)] = 8770,
    address: AddressOption = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Server processes.", min=1, max=64)] = 1,
    secret_file: SecretOption = None,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Allow an address without TLS; passwords are then readable for all.")
    ] = False,
    chat: ChatOption = None,
    chat_set: ChatSetOption = None,
    chat_names: ChatNamesOption = None,
    chat_moderation: ChatModerationOption = None,
    allow_host: HostsOption = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write a line of JSON for each request: route, status, time.")
    ] = False,
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
    config = UiConfig(
        store=store,
        address=where,
        secret_file=secret_file or _secret_file(store),
        allowed_hosts=tuple(allow_host or ()),
        log_requests=log_requests,
    )
    read_secret(config.secret_file)
    link = first_steps(config)
    show(f"first start: make the owner's account at {link}" if link else f"serving {where}")
    room = open_room(store, chat, chat_set, chat_names, chat_moderation) if chat else None
    reporter().say("Ctrl-C stops the server")
    _serve(config, host, port, workers, room)


def measure(judgments: "Sequence[Judgment]", completions: "Sequence[Completion]") -> dict[str, Any]:
    """Return the statistics of a dashboard; what makes them is read when the first one is asked for."""
    from harken.dashboard import measure as made

    return made(judgments, completions)


def app_from_environment() -> Any:
    """Return the app whose settings `ui` left for its server processes."""
    from harken.feedback.web.app import serve_app
    from harken.feedback.web.site import UiConfig

    return serve_app(UiConfig.model_validate_json(os.environ[CONFIG_VARIABLE]), measure)


def _serve(config: "UiConfig", host: str, port: int, workers: int, room: "ChatRoom | None") -> None:
    import uvicorn

    from harken.errors import StorageError
    from harken.feedback.web.app import serve_app
    from harken.feedback.web.logs import LOGGING

    try:
        if workers == 1:
            served = serve_app(config, measure, room)
        else:
            os.environ[CONFIG_VARIABLE] = config.model_dump_json()
            served = "harken.cli_ui:app_from_environment"
        uvicorn.run(
            served,
            factory=workers > 1,
            workers=workers,
            host=host,
            port=port,
            log_config=LOGGING,
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

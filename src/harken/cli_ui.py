"""`harken ui`: the web app in which people judge completions."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harken.cli_common import reporter, show

if TYPE_CHECKING:
    from harken.feedback.web.site import UiConfig

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
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write a line of JSON for each request: route, status, time.")
    ] = False,
) -> None:
    """Serve the web app: people judge, owners set up projects and see progress.

    The first start prints a link that makes the owner's account. Ctrl-C stops the server; nothing that was confirmed is
    lost.
    """
    from harken.feedback.web.site import UiConfig, check_address, first_steps, read_secret

    shown_host = f"[{host}]" if ":" in host else host
    where = check_address(address or f"http://{shown_host}:{port}", insecure=insecure_http)
    config = UiConfig(
        store=store, address=where, secret_file=secret_file or _secret_file(store), log_requests=log_requests
    )
    read_secret(config.secret_file)
    link = first_steps(config)
    show(f"first start: make the owner's account at {link}" if link else f"serving {where}")
    reporter().say("Ctrl-C stops the server")
    _serve(config, host, port, workers)


def _serve(config: "UiConfig", host: str, port: int, workers: int) -> None:
    import uvicorn

    from harken.errors import StorageError
    from harken.feedback.web.app import CONFIG_VARIABLE, serve_app
    from harken.feedback.web.logs import LOGGING

    try:
        if workers == 1:
            app = serve_app(config)
        else:
            os.environ[CONFIG_VARIABLE] = config.model_dump_json()
            app = "harken.feedback.web.app:app_from_environment"
        uvicorn.run(
            app,
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

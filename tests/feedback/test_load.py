"""A crowd against a real server that is killed on the way: every answer with a receipt is there, once."""

import asyncio
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest
from sqlalchemy import text

from benchmarks.serving import (
    Work,
    Worker,
    check,
    fill,
    free_port,
    run_crowd,
    start_server,
    stop_server,
)
from harken.feedback.store import FeedbackStore
from harken.feedback.web.security import csrf_token
from tests.feedback.databases import fresh_database
from tests.feedback.working import Workshop


async def _with_kill(
    port: int, workers: list[Worker], project: str, claims: int, kill: Callable[[], None], answered: Callable[[], int]
) -> list[Work]:
    crowd = asyncio.create_task(run_crowd(port, workers, project, claims=claims))
    half = len(workers) * claims // 2
    while await asyncio.to_thread(answered) < half and not crowd.done():
        await asyncio.sleep(0.05)
    await asyncio.to_thread(kill)
    return await crowd


def _crowd(url: str, folder: Path, *, num_workers: int, clients: int, claims: int) -> None:
    """Half of the answers, `kill -9` of all server processes, a new start, the rest; then everything is counted."""
    # Fewer answers are asked for than there are: the crowd fights for the last ones.
    num_tasks, overlap = clients * claims // 2 - clients, 2
    project, workers = fill(url, num_tasks=num_tasks, overlap=overlap, num_people=clients)
    port = free_port()
    options = (url, port, folder / "secret", "--workers", str(num_workers))
    server = start_server(*options)
    started: list[subprocess.Popen[bytes]] = [server]

    def kill() -> None:
        stop_server(server, signal.SIGKILL)
        started.append(start_server(*options))

    try:
        # In a thread of its own: a browser test before this one leaves its event loop running in the main one.
        with FeedbackStore.open(url, create=False) as store, ThreadPoolExecutor(1) as pool:
            crowd = _with_kill(port, workers, project, claims, kill, lambda: store.status().num_judgments)
            works = pool.submit(asyncio.run, crowd).result()
    finally:
        for process in started:
            if process.poll() is None:
                stop_server(process)
    assert len(started) == 2
    assert sum(work.retries for work in works) > 0, "nobody noticed the kill"
    assert sum(work.busy for work in works) == 0, "the store was locked for too long"
    # The last slots may be of tasks that those who are still there have had.
    assert check(url, project, overlap, works, workers) > 0.9 * num_tasks * overlap


@pytest.fixture(params=[("sqlite", 1), ("sqlite", 2), ("postgresql", 2)], ids=lambda param: f"{param[0]}-{param[1]}")
def served(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, int]:
    """URL of a store that is not there yet, and a number of server processes."""
    database, num_workers = request.param
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'f.db'}", num_workers
    return fresh_database(request.getfixturevalue("postgres")), num_workers


@pytest.mark.timeout(180)
def test_a_small_crowd_loses_and_doubles_nothing_when_the_server_is_killed(
    served: tuple[str, int], tmp_path: Path
) -> None:
    _crowd(served[0], tmp_path, num_workers=served[1], clients=6, claims=10)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 10,000 answers: 2 minutes on two idle cores
def test_fifty_clients_lose_and_double_nothing_when_the_server_is_killed(
    served: tuple[str, int], tmp_path: Path
) -> None:
    _crowd(served[0], tmp_path, num_workers=served[1], clients=50, claims=200)


def test_a_server_that_is_stopped_finishes_what_it_was_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    project, (worker,) = fill(url, num_tasks=2, overlap=1, num_people=1)
    port = free_port()
    server = start_server(url, port, tmp_path / "secret")
    other = sqlite3.connect(tmp_path / "f.db", isolation_level=None)
    try:
        # The claim has to wait for this lock while the server is told to stop.
        other.execute("BEGIN IMMEDIATE")
        body = urlencode({"csrf": csrf_token(worker.cookie)})
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(
                f"POST /projects/{project}/next HTTP/1.1\r\nHost: x\r\nCookie: harken={worker.cookie}\r\n"
                f"Origin: http://127.0.0.1:{port}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            time.sleep(1)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert server.poll() is None, "the server did not wait"
            other.execute("ROLLBACK")
            answer = client.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 303"), answer
        assert "location: /tasks/" in answer
        assert server.wait(timeout=30) in (0, -signal.SIGTERM)
    finally:
        other.close()
        if server.poll() is None:
            stop_server(server, signal.SIGKILL)


def test_postgresql_knows_how_many_slots_there_are_when_tasks_were_added(postgres: str) -> None:
    with FeedbackStore.open(fresh_database(postgres)) as store:
        work = Workshop.over(store)
        (ann,) = work.people("Ann")
        project = work.project(num_tasks=2000, overlap=2)
        assert work.leases.claim(project.id, ann.id)
        with store.database.reading() as connection:
            counted = text("SELECT reltuples FROM pg_class WHERE relname = 'slots'")
            # Without a count the planner takes the table for empty and reads all of it.
            assert connection.execute(counted).scalar_one() == 4000

"""How fast the web app serves tasks, and whether it loses or doubles any: a crowd of clients against a real server.

    python benchmarks/serving.py --store sqlite:///load.db --tasks 100000 --clients 50 --claims 200 --think 0

fills a fresh store, starts `harken ui` on it, lets the clients work, checks every receipt against the store and prints
one JSON object. Serving a task is an answer sent, its receipt with the next task claimed, and that task's page read to
the end. The clients are one process of its own: raw sockets, connections kept, no parsing of pages.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from harken.config.project import ComparisonTask, ProjectConfig
from harken.feedback.source import ImportSource
from harken.feedback.store import Accounts, FeedbackStore, Projects
from harken.feedback.tasks import TaskLine
from harken.feedback.web.security import csrf_token

_CHUNK = 20_000
_RETRY_S = 0.1
_SOURCE = ImportSource("tasks", "load.jsonl", "0" * 64)


@dataclass(frozen=True)
class Worker:
    """One person of the crowd, logged in."""

    person_id: str
    cookie: str


@dataclass
class Work:
    """What one client did."""

    receipts: list[str] = field(default_factory=list)
    """Leases whose answers the server confirmed."""
    claimed: list[str] = field(default_factory=list)
    """Leases whose pages were served."""
    answer_s: list[float] = field(default_factory=list)
    """Seconds from sending an answer to its receipt."""
    page_s: list[float] = field(default_factory=list)
    """Seconds from asking for a page to its last byte."""
    retries: int = 0
    """Requests sent again because the connection broke."""
    busy: int = 0
    """Answers that the store could not be used, as when a database is locked for too long; those are sent again too."""


def fill(url: str, *, num_tasks: int, overlap: int, num_people: int) -> tuple[str, list[Worker]]:
    """Make a store with tasks of about 1,000 characters and people with sessions; return the project and the people."""
    with FeedbackStore.open(url) as store:
        accounts, projects = Accounts(store.database), Projects(store.database)
        owner = accounts.join(accounts.first_invitation(), "Olga", "correct horse")
        config = ProjectConfig.model_validate({"task": ComparisonTask().model_dump(), "overlap": overlap})
        project = projects.make("load", config, owner)
        projects.set_guideline(project.id, "Which answer is **more helpful**? " * 20, owner)
        for start in range(0, num_tasks, _CHUNK):
            lines = [_line(number) for number in range(start, min(num_tasks, start + _CHUNK))]
            projects.add_tasks(project.id, lines, _SOURCE)
        workers: list[Worker] = []
        for number in range(num_people):
            person = accounts.join(accounts.invite("annotator", owner), f"Person {number}", "correct horse")
            workers.append(Worker(person.id, accounts.log_in(person)))
    return project.id, workers


def _line(number: int) -> TaskLine:
    answers = [f"Answer {letter} to {number}. {'some more words, ' * 25}" for letter in "ab"]
    return TaskLine.model_validate({"prompt": f"Question {number}? {'in other words, ' * 10}", "completions": answers})


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_server(url: str, port: int, secret: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `harken ui` in a process group of its own and return when it answers."""
    harken = [sys.executable, "-c", "from harken.cli import main; main()"]
    command = [*harken, "ui", "--store", url, "--port", str(port), "--secret-file", str(secret)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, start_new_session=True)
    for _ in range(300):
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return process
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start within 30 s")


def stop_server(process: subprocess.Popen[bytes], kind: signal.Signals = signal.SIGTERM) -> int:
    """Send a signal to all processes of a server and return its exit status."""
    os.killpg(process.pid, kind)
    return process.wait(timeout=30)


class _Client:
    """One kept connection, opened again whenever it breaks."""

    def __init__(self, port: int, worker: Worker, work: Work) -> None:
        self._port = port
        self._work = work
        self._origin = f"http://127.0.0.1:{port}"
        self._head = f"Host: 127.0.0.1:{port}\r\nCookie: harken={worker.cookie}\r\nAccept: text/html\r\n"
        self._csrf = csrf_token(worker.cookie)
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return await self._until_answered(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode())

    async def post(self, path: str, **fields: str) -> tuple[int, dict[str, str], bytes]:
        body = urlencode({"csrf": self._csrf, **fields})
        kind = f"Origin: {self._origin}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        head = f"POST {path} HTTP/1.1\r\n{self._head}{kind}Content-Length: {len(body)}\r\n\r\n"
        return await self._until_answered((head + body).encode())

    async def _until_answered(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        is_first = True
        while True:
            try:
                found = await self._once(request)
            except (OSError, asyncio.IncompleteReadError):
                self.close()
            else:
                if found[0] != 503:
                    return found
                self._work.busy += 1
            self._work.retries += 1
            # A kept connection that the server has closed meanwhile is opened again at once, as browsers do.
            if not is_first:
                await asyncio.sleep(_RETRY_S)
            is_first = False

    async def _once(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._stream is None:
            self._stream = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._stream
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers, body

    def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


async def _work_off(port: int, worker: Worker, project_id: str, claims: int, think_s: float) -> Work:
    work = Work()
    client = _Client(port, worker, work)
    chance = random.Random(worker.person_id)
    # Nobody starts at the same moment.
    await asyncio.sleep(chance.uniform(0, max(think_s, 0.5)))
    status, headers, _ = await client.post(f"/projects/{project_id}/next")
    while len(work.receipts) < claims:
        assert status == 303, (status, headers)
        path = headers["location"]
        if not path.startswith("/tasks/"):
            break  # nothing left for this person
        lease = path.removeprefix("/tasks/").partition("?")[0]
        began = time.perf_counter()
        status, _, page = await client.get(path)
        work.page_s.append(time.perf_counter() - began)
        assert status == 200, (status, page[:500])
        assert b'data-place="2"' in page
        work.claimed.append(lease)
        if think_s:
            await asyncio.sleep(chance.expovariate(1 / think_s))
        choice = f"{chance.randint(1, 2)}-{chance.randint(0, 3)}"
        began = time.perf_counter()
        status, headers, page = await client.post(f"/tasks/{lease}", choice=choice, outcome="answer", active_s="1.5")
        work.answer_s.append(time.perf_counter() - began)
        assert status == 303, (status, page[:500])
        work.receipts.append(lease)
    client.close()
    return work


async def run_crowd(
    port: int, workers: Sequence[Worker], project_id: str, *, claims: int, think_s: float = 0.0
) -> list[Work]:
    """Let every person answer so many tasks, each with one connection, all at the same time."""
    return list(await asyncio.gather(*(_work_off(port, worker, project_id, claims, think_s) for worker in workers)))


def check(url: str, project_id: str, overlap: int, works: Sequence[Work], workers: Sequence[Worker]) -> int:
    """Check the store against what the clients were told; return the number of judgments.

    Raises:
        AssertionError: an answer with a receipt is missing or there twice, a task has too many, somebody had one twice.
    """
    with FeedbackStore.open(url, create=False) as store:
        judgments = list(store.judgments(include_superseded=True))
        progress = Projects(store.database).progress(project_id)
    told = {(worker.person_id, lease) for worker, work in zip(workers, works, strict=True) for lease in work.receipts}
    stored = Counter((one.judge.id, one.assignment.lease_id) for one in judgments if one.assignment)
    assert told == set(stored), f"{len(told - set(stored))} receipts without a judgment"
    assert max(stored.values()) == 1, "an answer was stored twice"
    per_task = Counter(one.prompt_id for one in judgments)
    assert max(per_task.values()) <= overlap, "a task has more answers than its overlap"
    assert max(Counter((one.prompt_id, one.judge.id) for one in judgments).values()) == 1, "somebody had a task twice"
    assert (progress.num_done, progress.num_surplus) == (len(judgments), 0)
    return len(judgments)


def summary(works: Sequence[Work], seconds: float) -> dict[str, float]:
    """Return the latencies in milliseconds and the rate over a run."""
    answers = [second for work in works for second in work.answer_s]
    pages = [second for work in works for second in work.page_s]
    # Pages are one ahead: the page of a task comes after the answer to the one before.
    both = [a + b for work in works for a, b in zip(work.answer_s, work.page_s[1:], strict=False)]
    found: dict[str, float] = {"tasks": len(answers), "tasks_per_s": round(len(answers) / seconds, 1)}
    for name, values in (("answer", answers), ("page", pages), ("serving", both)):
        ordered = sorted(values)
        for share in (50, 95, 99):
            found[f"{name}_p{share}_ms"] = round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1)
    found["retries"] = sum(work.retries for work in works)
    found["busy"] = sum(work.busy for work in works)
    return found


def cpu_seconds(group: int) -> float:
    """Return the processor seconds that all living processes of a group have used; Linux only."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="URL of a store that is not there yet")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--claims", type=int, default=200, help="tasks that each client answers")
    parser.add_argument("--think", type=float, default=0.0, help="mean seconds between a page and its answer")
    parser.add_argument("--workers", type=int, default=1, help="server processes")
    parser.add_argument("--secret", type=Path, default=Path("serving.secret"))
    given = parser.parse_args()
    # Like Ctrl-C, so that the server is stopped too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    project_id, workers = fill(given.store, num_tasks=given.tasks, overlap=given.overlap, num_people=given.clients)
    port = free_port()
    server = start_server(given.store, port, given.secret, "--workers", str(given.workers))
    try:
        before, began = cpu_seconds(server.pid), time.perf_counter()
        works = asyncio.run(run_crowd(port, workers, project_id, claims=given.claims, think_s=given.think))
        seconds = time.perf_counter() - began
        used = cpu_seconds(server.pid) - before
    finally:
        stop_server(server)
    found = summary(works, seconds)
    found["server_cpu_ms_per_task"] = round(1000 * used / found["tasks"], 2)
    found["judgments"] = check(given.store, project_id, given.overlap, works, workers)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

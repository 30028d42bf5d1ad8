"""Data sets by name, through the libraries that speak to the hub, from a server that speaks its protocol."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.calling import call
from tests.cli.hub_server import HubServer

CHILD = """
import json, sys
from harken.errors import DataError
from harken.feedback.exchange.optional import hub_rows
for line in sys.stdin:
    try:
        print(json.dumps(list(hub_rows(line.strip()))), flush=True)
    except DataError as error:
        print(json.dumps(str(error)), flush=True)
"""
ROWS = [{"prompt": f"question {number}", "chosen": "yes", "rejected": "no"} for number in range(3)]


def test_rows_come_through_the_real_libraries_and_what_is_not_there_is_said(tmp_path: Path) -> None:
    files = {
        "README.md": b"---\nlicense: mit\n---\n",
        "data/test.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    }
    server = HubServer("owner/name", files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # The libraries read these once, so they are told in a process of their own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write("owner/name#test\nowner/name#nosuch\nowner/other\n")
            child.stdin.flush()
            found, no_split, no_set = (json.loads(child.stdout.readline()) for _ in range(3))
        finally:
            server.shutdown()
            server.server_close()
        out, _ = child.communicate("owner/more\n", timeout=200)
        unreachable = json.loads(out)
    assert found == [[number, row] for number, row in enumerate(ROWS, start=1)]
    problems = {"owner/name#nosuch": no_split, "owner/other": no_set, "owner/more": unreachable}
    for name, problem in problems.items():
        assert problem.startswith(f"hub:{name}: ")
        assert "expected hub:owner/name or hub:owner/name#split" in problem
    assert "test" in no_split


def test_without_a_network_the_error_says_so() -> None:
    # All tests run with the libraries told to stay offline.
    ended = call("data", "check", "hub:owner/name")
    assert ended.code == 2
    assert "hub:owner/name" in ended.problem
    assert "a way to reach the hub" in ended.problem


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/b/c", "", "~/x", "a b"])
def test_names_that_are_paths_are_refused(name: str) -> None:
    ended = call("data", "check", f"hub:{name}")
    assert ended.code == 2
    assert "not a name of the hub" in ended.problem


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    ended = call("data", "check", "hub:owner/name")
    assert ended.code == 2
    assert "there is a folder owner/name here" in ended.problem

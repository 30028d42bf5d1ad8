"""Files made to do harm, through the commands that read files of strangers: exit code, message, memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.calling import call
from tests.feedback.test_exchange_hostile import GOOD, HOSTILE, long_line
from tests.feedback.test_exchange_memory import PARQUET

LIMIT_GB = 0.8
"""Of a whole process, libraries included."""


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_file_is_wrong_input_said_in_one_line(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path, store = make(tmp_path), tmp_path / "f.db"
    for command in (("data", "check", path), ("collect", "import", path, "--store", f"sqlite:///{store}")):
        ended = call(*command)
        assert (ended.code, HOSTILE[make] in ended.problem) == (2, True), ended
        assert path.name in ended.problem
        assert "Traceback" not in ended.err
    # Nothing of it stays behind, though the rows before the bad place could be read.
    if store.exists():
        counted = json.loads(call("collect", "status", "--store", f"sqlite:///{store}", "--json").out)
        assert (counted["num_prompts"], counted["num_judgments"]) == (0, 0)


def test_other_commands_read_no_more_than_they_can_hold(tmp_path: Path) -> None:
    long, store = long_line(tmp_path), f"sqlite:///{tmp_path / 'f.db'}"
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000 + "]" * 100_000)
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "a", "completions": ["b", "c"]}\n')
    call("collect", "import", _good(tmp_path), "--store", store)
    expected = {
        ("collect", "tasks", long, "--store", store, "--project", "p"): "larger than 256 MB",
        ("collect", "consent", long, "--store", store, "--version", "1"): "larger than 256 MB",
        ("collect", "demographics", long, "--store", store): "the line is longer than 32 MB",
        ("collect", "agreement", "--store", store, "--groups", deep): "too deep",
        ("collect", "agreement", "--store", store, "--gold", long): "the line is longer than 32 MB",
        ("collect", "consent", latin, "--store", store, "--version", "1"): "not UTF-8",
        ("collect", "tasks", tmp_path / "tasks.jsonl", "--store", store, "--project", "p", "--guideline", latin): (
            "not UTF-8"
        ),
        ("preferences", tmp_path, "--out", tmp_path / "out.jsonl"): "",
    }
    for command, words in expected.items():
        ended = call(*command)
        assert (ended.code, words in ended.problem) == (2, True), (command, ended)
        assert "Traceback" not in ended.err


def _good(folder: Path) -> Path:
    path = folder / "good.jsonl"
    path.write_bytes(GOOD)
    return path


def test_an_export_with_a_link_out_of_it_is_not_imported(tmp_path: Path) -> None:
    store, export = f"sqlite:///{tmp_path / 'f.db'}", tmp_path / "export"
    call("collect", "import", _good(tmp_path), "--store", store)
    assert call("collect", "export", "--store", store, "--out", export).code == 0
    (export / "judgments.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (export / "judgments.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    for command in (
        ("collect", "import", export, "--store", f"sqlite:///{tmp_path / 'g.db'}"),
        ("data", "check", export),
    ):
        ended = call(*command)
        assert (ended.code, "a symbolic link out of the folder" in ended.problem) == (2, True), ended


CHILD = """
import atexit, re
from pathlib import Path
from harken.cli import main
# Not ru_maxrss: it begins at what the process that started this one had.
peak = lambda: re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)
atexit.register(lambda: print(f"peak {peak()}"))
main()
"""


@pytest.mark.slow
def test_no_command_grows_large_over_a_hostile_file(tmp_path: Path) -> None:
    peaks: dict[str, float] = {}
    for make in HOSTILE | PARQUET:
        path = make(tmp_path)
        for command in (["data", "check"], ["collect", "import", "--store", f"sqlite:///{tmp_path / 'f.db'}"]):
            ended = subprocess.run(
                [sys.executable, "-c", CHILD, *command, str(path)], capture_output=True, text=True, timeout=100
            )
            assert ended.returncode in (0, 2), ended.stderr
            peaks[f"{command[1]} {path.name}"] = int(ended.stdout.rsplit("peak ", 1)[1]) / 1e6
    assert max(peaks.values()) < LIMIT_GB, peaks

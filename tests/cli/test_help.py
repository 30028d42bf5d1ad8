"""Help: every command has it, with examples that work, in any terminal, at once."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from harken.cli import app
from tests.cli.calling import call

SRC = Path(__file__).resolve().parents[2] / "src"


def leaves(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from leaves((*path, name), child)


COMMANDS = dict(leaves((), typer.main.get_command(app)))


def test_all_commands_of_the_contract_are_there() -> None:
    single = {path[0] for path in COMMANDS if len(path) == 1}
    stages = {"generate", "preferences", "sft", "reward", "dpo", "ppo", "ilql", "rft", "score", "evaluate", "report"}
    stages |= {"ipo", "simpo", "orpo", "cpo", "kto", "online-dpo"}
    stages |= {"rloo", "grpo", "dr-grpo", "reinforce-pp", "remax", "gspo", "cispo", "dapo"}
    assert single == {"demo", "run", "init", "doctor", "bench", "plan", "export", "ui"} | stages
    collect = {"import", "export", "status", "agreement", "tasks", "sample", "judge", "backup", "restore"}
    assert {path[1] for path in COMMANDS if path[0] == "collect"} >= collect
    assert {path[1] for path in COMMANDS if path[0] == "data"} == {"check", "convert"}


def test_the_list_of_commands_names_each_once_with_a_whole_sentence() -> None:
    top: Any = typer.main.get_command(app)
    listed = top.list_commands(None)
    assert sorted(listed) == sorted(top.commands)
    words = " ".join(call("--help").out.split())
    for name, command in top.commands.items():
        assert f"{name} {' '.join(command.help.split()).partition('. ')[0].rstrip('.')}" in words


@pytest.mark.parametrize("path", COMMANDS, ids="-".join)
@pytest.mark.parametrize("columns", ["80", "40"])
def test_help_shows_examples_in_wide_and_narrow_terminals(
    path: tuple[str, ...], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ended = call(*path, "--help")
    assert ended.code == 0
    assert ended.err == ""
    text, examples = ended.out.split("Examples:")
    assert f"harken {' '.join(path)}" in examples
    assert all(len(line) <= int(columns) for line in text.splitlines()), text


@pytest.mark.parametrize("path", COMMANDS, ids="-".join)
def test_examples_fit_into_80_columns_and_use_options_that_exist(path: tuple[str, ...]) -> None:
    lines = [line for line in COMMANDS[path].epilog.splitlines() if line.startswith("  ")]
    assert all(len(line) <= 78 for line in lines)
    examples = "\n".join(line.strip() for line in lines).replace("\\\n", " ").splitlines()
    own = [shlex.split(line) for line in examples]
    assert own
    for words in own:
        other = tuple(words[1:2]) if tuple(words[1:2]) in COMMANDS else tuple(words[1:3])
        command = COMMANDS[other]
        # Raises a usage error where an option does not exist or one is missing.
        command.make_context(words[1], words[1 + len(other) :])


def test_harken_alone_shows_the_help() -> None:
    assert call().out == call("--help").out
    assert call().code == 0


def run_python(code: str) -> str:
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip().splitlines()[-1]


def test_help_loads_neither_torch_nor_pydantic() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'pydantic', 'numpy', 'rich', 'sqlalchemy'}"
    code = f"import sys; from harken.cli import run_command; run_command([]); print(sorted({heavy} & set(sys.modules)))"
    assert run_python(code) == "[]"


def test_collect_commands_do_not_load_torch(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'f.db'}"
    code = (
        "import sys; from harken.feedback.store import FeedbackStore; from harken.cli import run_command\n"
        f"FeedbackStore.open({store!r}).close()\n"
        f"code = run_command(['collect', 'status', '--store', {store!r}])\n"
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert run_python(code) == "0 []"

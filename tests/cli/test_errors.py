"""Every mistake of a user ends in one clear line and the right exit code, never in a traceback."""

import os
from pathlib import Path

import pytest

import harken.datasets
from tests.cli.calling import FP32, call, write_data, write_ratings, write_rows


@pytest.fixture
def here(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good data, files with one mistake each, and a model at `tiny`."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    demonstration = '{"prompt": "a", "completion": "b"}\n'
    (tmp_path / "bad.jsonl").write_text(demonstration + '{"prompt": "a", "completion"\n')
    (tmp_path / "list.jsonl").write_text('["a"]\n')
    (tmp_path / "latin.jsonl").write_bytes(demonstration.encode() + '{"prompt": "é"}\n'.encode("latin-1"))
    (tmp_path / "nothing.jsonl").write_text("\n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "surrogate.jsonl").write_text('{"prompt": "\\ud800"}\n')
    write_rows(tmp_path / "empty.jsonl", [{"prompt": " ", "completion": "b"}])
    write_rows(tmp_path / "silent.jsonl", [{"prompt": "a", "completion": ""}])
    write_rows(tmp_path / "equal.jsonl", [good, good | {"rejected": "b"}])
    write_rows(tmp_path / "key.jsonl", [good | {"winner": "b"}])
    write_rows(tmp_path / "strong.jsonl", [good | {"strength": 4}])
    labeled = {"prompt": "say", "completion": "yes", "label": True}
    write_rows(tmp_path / "labeled.jsonl", [labeled, labeled | {"completion": "no", "label": False}])
    write_rows(tmp_path / "doubt.jsonl", [labeled, labeled | {"label": "maybe"}])
    write_rows(tmp_path / "stars.jsonl", [labeled | {"label": 5}])
    (tmp_path / "key.toml").write_text("stepz = 3\n")
    (tmp_path / "bad.toml").write_text("steps = = 3\n")
    (tmp_path / "rules.py").write_text("def short(prompts, completions):\n    return [0.0] * len(prompts)\n")
    (tmp_path / "folder").mkdir()
    write_ratings(tmp_path / "ratings")
    return tmp_path


DPO = ("dpo", "--model", "tiny", "--out", "out", "--data")
ONLINE = ("online-dpo", "--model", "tiny", "--prompts", "prompts.txt", "--out", "out")
KTO = ("kto", "--model", "tiny", "--out", "out", "--data")
ILQL = ("ilql", "--model", "tiny", "--out", "out", "--data")
SFT = ("sft", "--model", "tiny", "--out", "out", "--data")
REWARD = ("reward", "--model", "tiny", "--out", "out", "--data")
PPO = ("ppo", "--model", "tiny", "--prompts", "prompts.txt", "--out", "out", *FP32)
PPO_RULES = (*PPO, "--reward", "rules.py:short")
IMPORT = ("collect", "import", "--store", "sqlite:///f.db")

MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "missing file": ((*SFT, "none.jsonl"), ("none.jsonl", "No such file")),
    "folder as file": ((*SFT, "folder"), ("folder", "cannot be read", "directory")),
    "bad JSON": ((*SFT, "bad.jsonl"), ("bad.jsonl:2: bad JSON",)),
    "not an object": ((*SFT, "list.jsonl"), ("list.jsonl:1", "list instead of an object")),
    "wrong encoding": ((*SFT, "latin.jsonl"), ("latin.jsonl:2", "not UTF-8")),
    "half a surrogate pair": (
        ("generate", "--model", "tiny", "--prompts", "surrogate.jsonl", "--out", "c.jsonl"),
        ("surrogate.jsonl:1: bad JSON",),
    ),
    "empty file": ((*SFT, "nothing.jsonl"), ("nothing.jsonl: the file is empty",)),
    "empty prompt": ((*SFT, "empty.jsonl"), ("empty.jsonl:1", "is empty")),
    "empty completion": ((*SFT, "silent.jsonl"), ("silent.jsonl:1: completion is empty",)),
    "empty line in a list of prompts": (
        ("generate", "--model", "tiny", "--prompts", "gap.txt", "--out", "c.jsonl"),
        ("gap.txt:2: the prompt is empty",),
    ),
    "chosen equal to rejected": ((*REWARD, "equal.jsonl"), ("equal.jsonl:2", "chosen and rejected are identical")),
    "unknown key in a row": ((*REWARD, "key.jsonl"), ("key.jsonl:1: unknown key 'winner'", "chosen")),
    "strength off the scale": ((*REWARD, "strong.jsonl"), ("strong.jsonl:1", "strength")),
    "demonstrations for dpo": ((*DPO, "demonstrations.jsonl"), ("demonstrations.jsonl:1: unknown key 'completion'",)),
    "demonstrations for kto": ((*KTO, "demonstrations.jsonl"), ("demonstrations.jsonl:1: label is missing", "true")),
    "labels for dpo": ((*DPO, "labeled.jsonl"), ("labeled.jsonl:1: unknown key 'completion'",)),
    "a label that is none": ((*KTO, "doubt.jsonl"), ('doubt.jsonl:2: label is "maybe"', "a probability")),
    "a label off the scale": ((*KTO, "stars.jsonl"), ("stars.jsonl:1: label is 5", "a probability")),
    "best without a measurement": ((*DPO, "pairs.jsonl", "--set", "keep_best=true"), ("needs heldout_every",)),
    "best and average": (
        (
            *DPO,
            "pairs.jsonl",
            "--set",
            "keep_best=true",
            "--set",
            "heldout_every=1",
            "--set",
            "optimizer.ema_decay=0.9",
        ),
        ("keep_best", "ema_decay"),
    ),
    "setting of another loss": ((*KTO, "pairs.jsonl", "--set", "loss.margin=1"), ("'loss.margin'", "another `kind`")),
    "unknown loss": ((*DPO, "pairs.jsonl", "--set", "loss.kind=dop"), ("'loss'", "dop")),
    "kto online": (
        (*ONLINE, "--reward", "lexicon", "--set", "loss.kind=kto"),
        ("`harken kto`",),
    ),
    "pairs for sft": ((*SFT, "pairs.jsonl"), ("pairs.jsonl:1: unknown key 'chosen'",)),
    "completions without a score": ((*ILQL, "demonstrations.jsonl"), ("demonstrations.jsonl:1", "score")),
    "best-of without a reward": (
        ("generate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "c.jsonl", "--best-of", "4"),
        ("--best-of N and --reward R belong together",),
    ),
    "guidance without heads": (
        ("generate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "c.jsonl", "--set", "guidance=2"),
        ("guidance = 2: tiny holds no Q heads",),
    ),
    "unknown key in --set": ((*PPO_RULES, "--set", "stepz=1"), ("--set: unknown config key 'stepz'", "'steps'")),
    "unknown key in --config": ((*PPO_RULES, "--config", "key.toml"), ("key.toml", "'stepz'", "'steps'")),
    "bad TOML": ((*PPO_RULES, "--config", "bad.toml"), ("bad.toml: not valid TOML", "line 1")),
    "missing --config": ((*PPO_RULES, "--config", "none.toml"), ("none.toml: cannot be read",)),
    "--set without value": ((*PPO_RULES, "--set", "steps"), ("--set steps: expected KEY=VALUE",)),
    "value of the wrong type": ((*PPO_RULES, "--set", "steps=many"), ("'steps'", "found 'many'")),
    "--n below 1": (
        ("generate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "c.jsonl", "--n", "0"),
        ("completions_per_prompt", "found 0"),
    ),
    "unknown recipe": (("run", "revews"), ("recipe 'revews'", "reviews")),
    "unknown key for a recipe": (("run", "reviews", "--set", "ppo.stepz=1"), ("'ppo.stepz'", "'ppo.steps'")),
    "unknown key for the demo": (("demo", "--set", "ppo.stepz=1"), ("'ppo.stepz'", "'ppo.steps'")),
    "unknown recipe for init": (("init", "new", "--recipe", "revews"), ("revews", "reviews")),
    "init over a folder in use": (("init", "ratings"), ("ratings: is there already", "nothing was written")),
    "store of another database": (
        ("collect", "status", "--store", "mysql://me:secret@host/f"),
        ("only SQLite and PostgreSQL", "sqlite:///PATH"),
    ),
    "not a store URL": (("collect", "status", "--store", "f.db"), ("not a database URL", "sqlite:///PATH")),
    "missing store": (("collect", "export", "--store", "sqlite:///none.db", "--out", "e"), ("none.db", "no store")),
    "file that is no store": (("collect", "status", "--store", "sqlite:///pairs.jsonl"), ("not a Harken store",)),
    "unknown ratings": ((*IMPORT, "reviews:films"), ("reviews:films", "reviews:movie")),
    "no ratings there": ((*IMPORT, "folder"), ("folder: no ratings here",)),
    "unknown format": ((*IMPORT, "ratings", "--format", "cvs"), ("'cvs'", "csv")),
    "missing export": (("preferences", "none", "--out", "p.jsonl"), ("none: not a folder", "harken collect export")),
    "missing reward": ((*PPO, "--reward", "none"), ("--reward none", "file.py:function")),
    "folder that is no reward model": ((*PPO, "--reward", "folder"), ("no reward.json",)),
    "missing reward file": ((*PPO, "--reward", "none.py:short"), ("none.py:short: no such file",)),
    "missing function": ((*PPO, "--reward", "rules.py:long"), ("rules.py", "'long'")),
    "bad weight": ((*PPO, "--reward", "half*rules.py:short"), ("half*rules.py:short", "WEIGHT*REWARD")),
    "missing model": (
        ("generate", "--model", "./none", "--prompts", "prompts.txt", "--out", "c.jsonl"),
        ("./none: no such folder",),
    ),
    "folder that is no model": (
        ("generate", "--model", "folder", "--prompts", "prompts.txt", "--out", "c.jsonl"),
        ("folder: no config.json",),
    ),
    "folder as --out": (
        ("generate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "folder"),
        ("--out folder: a folder",),
    ),
    "unknown other model": (
        ("evaluate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "e"),
        ("--model tiny", "--against"),
    ),
    "missing run": (("report", "none"), ("none: no such run folder",)),
    "unknown option": (("ppo", "--steps", "3"), ("No such option: --steps", "harken ppo --help")),
    "missing option": (("sft", "--model", "tiny"), ("Missing option", "--data", "harken sft --help")),
    "missing argument": (("run",), ("Missing argument", "harken run --help")),
    "unknown command": (("traim",), ("traim", "harken --help")),
    "no command": (("collect",), ("Missing command", "harken collect --help")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_use_and_bad_input_end_with_one_line_and_2(mistake: str, here: Path) -> None:
    arguments, fragments = MISTAKES[mistake]
    ended = call(*arguments)
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert ended.problem.startswith("error: ")
    assert "Traceback" not in ended.err
    assert ended.err.count("error: ") == 1
    assert all(fragment in ended.problem for fragment in fragments), ended.problem
    assert "secret" not in ended.err


def test_a_reward_that_fails_ends_with_1_and_names_the_prompt(here: Path) -> None:
    (here / "rules.py").write_text(
        "def short(prompts, completions):\n"
        "    return [1 / (completion.message.content != 'b') for completion in completions]\n"
    )
    write_rows(here / "p.jsonl", [{"id": name, "messages": [{"role": "user", "content": name}]} for name in "xy"])
    message = {"role": "assistant", "content": "b"}
    write_rows(here / "c.jsonl", [{"id": "c", "prompt_id": "y", "message": message}])
    ended = call("score", "--reward", "rules.py:short", "--prompts", "p.jsonl", "--in", "c.jsonl", "--out", "s.jsonl")
    assert ended.code == 1
    assert "ZeroDivisionError" in ended.problem
    assert "'y'" in ended.problem
    assert "Traceback" not in ended.err
    assert not (here / "s.jsonl").exists()


def test_completions_of_other_prompts_are_refused(here: Path) -> None:
    message = {"role": "assistant", "content": "b"}
    write_rows(here / "c.jsonl", [{"id": "c", "prompt_id": "elsewhere", "message": message}])
    ended = call(
        "score", "--reward", "rules.py:short", "--prompts", "prompts.txt", "--in", "c.jsonl", "--out", "s.jsonl"
    )
    assert ended.code == 2
    assert "c.jsonl:1" in ended.problem
    assert "'elsewhere'" in ended.problem


def test_a_folder_that_cannot_be_written_ends_with_1(here: Path) -> None:
    # A file where a folder should be: fails for every user, root included.
    ended = call("generate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "pairs.jsonl/c.jsonl")
    assert ended.code == 1
    assert "could not be written" in ended.problem


def test_a_mistake_of_our_own_ends_with_1_and_shows_its_place_only_when_asked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, notify: object) -> None:
        raise LookupError(f"lost {path}")

    monkeypatch.setattr(harken.datasets, "read_prompts", broken)
    arguments = ("generate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "c.jsonl")
    ended = call(*arguments)
    assert ended.code == 1
    assert "LookupError: lost prompts.txt" in ended.problem
    assert "Traceback" not in ended.err
    monkeypatch.setenv("HARKEN_DEBUG", "1")
    with pytest.raises(LookupError):
        call(*arguments)


def test_debug_adds_the_traceback_to_the_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARKEN_DEBUG", "1")
    ended = call(*SFT, "bad.jsonl")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert "bad.jsonl:2" in ended.problem


def test_a_missing_package_is_named_with_the_extra_that_brings_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy")

    monkeypatch.setattr(harken.datasets, "read_prompts", missing)
    ended = call("generate", "--model", "tiny", "--prompts", "prompts.txt", "--out", "c.jsonl")
    assert ended.code == 2
    assert "pip install 'harken[collect]'" in ended.problem


def test_nothing_is_left_behind_by_a_command_that_was_refused(here: Path) -> None:
    before = sorted(os.listdir(here))
    for arguments in (
        (*SFT, "bad.jsonl"),
        (*SFT, "demonstrations.jsonl", *FP32, "--set", "max_length=3"),
        (*PPO, "--reward", "folder"),
        (*PPO_RULES, "--set", "stepz=1"),
        (*PPO_RULES, "--set", "sampling.max_new_tokens=256"),
        ("run", "revews"),
        ("run", "reviews", "--out", "out", "--set", "collect.path=folder"),
    ):
        assert call(*arguments).code == 2, arguments
    assert sorted(os.listdir(here)) == before

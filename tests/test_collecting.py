"""Completions of models become tasks: chosen with known chances, resumable after a kill, never twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from harken.collecting import open_judge, sample_tasks
from harken.config import JudgeConfig, ProjectConfig, SampleConfig
from harken.endpoint import parse_endpoint
from harken.errors import DataError, SamplerError, UsageError
from harken.feedback.store import FeedbackStore, Project, Projects
from harken.feedback.store.machine import asked_pairs
from harken.feedback.store.work_tables import tasks
from harken.lm.load import load_model
from harken.lm.sample import sample
from harken.lm.talk import TrunkChat
from harken.lm.trunk import Trunk
from harken.protocols import whole_answer
from harken.records import Message, Prompt, SamplingSettings
from tests.cli.calling import call
from tests.feedback.scripted import service

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [Prompt(id=f"p{number}", messages=(Message(role="user", content=f"say {number}"),)) for number in range(12)]
REWARDS = """
def short(prompts, completions):
    return [-float(len(completion.message.content)) for completion in completions]


def letters(prompts, completions):
    return [float(completion.message.content.count("e")) for completion in completions]
"""


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'f.db'}") as opened:
        yield opened


@pytest.fixture
def rewards(tmp_path: Path) -> list[str]:
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return [f"{tmp_path / 'rewards.py'}:{name}" for name in ("short", "letters")]


def _project(store: FeedbackStore, **task: Any) -> Project:
    return Projects(store.database).make("first", ProjectConfig.model_validate({"task": task} if task else {}))


def _config(**choose: Any) -> SampleConfig:
    return SampleConfig.model_validate(
        {
            "compute": {"dtype": "float32"},
            "sampling": {"max_new_tokens": 6},
            "batch_size": 8,
            "completions_per_prompt": 2,
            "choose": {"num_tasks": 10, "clusters": 3, **choose},
        }
    )


def _tasks(store: FeedbackStore, project: Project) -> list[Any]:
    with store.database.reading() as connection:
        return list(connection.execute(select(tasks).where(tasks.c.project_id == project.id)).all())


def test_pairs_of_two_models_become_tasks_with_their_chances(
    store: FeedbackStore, tiny_model_dir: Path, rewards: list[str]
) -> None:
    project = _project(store)
    with service(lambda body: f"from {body['model']} for {body['messages'][-1]['content']} e{body['seed']}") as address:
        models = [str(tiny_model_dir), f"{address}#far-away"]
        done = sample_tasks(store, project, models, PROMPTS, rewards, _config())
        assert (done.num_drawn, done.num_new, done.num_known) == (48, 10, 0)
        assert done.num_candidates == 12 * 6
        again = sample_tasks(store, project, models, PROMPTS, rewards, _config())
    assert (again.num_drawn, again.num_kept, again.num_new, again.num_known) == (0, 48, 0, 10)
    found = _tasks(store, project)
    assert len(found) == 10
    assert all(0 < task.selection_probability <= 1 for task in found)
    assert sum("random" in task.tags for task in found) == done.num_random
    assert Counter(one.model for one in store.completions()) == {str(tiny_model_dir): 24, "far-away": 24}
    assert all(one.seed is not None for one in store.completions())
    pairs = asked_pairs(store.database, project.id)
    assert len(pairs) == 10
    assert any(
        "chosen from 72 pairs by the disagreement of 2 rewards" in note for one in store.imports() for note in one.notes
    )


def test_only_pairs_across_models_when_asked(store: FeedbackStore, tiny_model_dir: Path) -> None:
    project = _project(store)
    with service(lambda body: f"{body['messages'][-1]['content']} {body['seed']}") as address:
        models = [str(tiny_model_dir), f"{address}#other"]
        done = sample_tasks(store, project, models, PROMPTS, [], _config(across="models", random_share=1.0))
    assert done.num_candidates == 12 * 4
    assert done.num_random == 10
    # Without rewards, and with the whole share random, all have the same chance.
    assert {round(task.selection_probability, 9) for task in _tasks(store, project)} == {round(10 / 48, 9)}
    for pair in asked_pairs(store.database, project.id):
        assert pair.one.model != pair.other.model


def test_what_cannot_be_sampled_is_told(store: FeedbackStore, tiny_model_dir: Path) -> None:
    model = str(tiny_model_dir)
    with pytest.raises(UsageError, match="named twice"):
        sample_tasks(store, _project(store), [model, model], PROMPTS, [], _config())
    other = Projects(store.database).make("second", ProjectConfig.model_validate({"task": {"kind": "ranking"}}))
    with pytest.raises(UsageError, match="ranking"):
        sample_tasks(store, other, [model], PROMPTS, [], _config())
    with service(lambda body: "always the same") as address, pytest.raises(DataError, match="no pair"):
        sample_tasks(
            store, Projects(store.database).make("third", ProjectConfig()), [f"{address}#m"], PROMPTS, [], _config()
        )


def test_what_was_drawn_before_a_failure_is_kept(store: FeedbackStore) -> None:
    project = _project(store)
    asked: list[dict[str, Any]] = []

    def say(body: dict[str, Any]) -> str:
        return "FAIL" if len(asked) == 13 else f"for {body['messages'][-1]['content']} {body['seed']}"

    config = _config().model_copy(update={"concurrency": 1})
    with service(say, seen=asked) as address:
        with pytest.raises(SamplerError, match="HTTP 500"):
            sample_tasks(store, project, [f"{address}#m"], PROMPTS, [], config)
        assert _tasks(store, project) == []
        done = sample_tasks(store, project, [f"{address}#m"], PROMPTS, [], config)
    assert (done.num_kept, done.num_drawn, done.num_new) == (8, 16, 10)


@pytest.mark.slow
def test_a_kill_costs_a_block_and_puts_no_task_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    (tmp_path / "p.txt").write_text("".join(f"say {number}\n" for number in range(12)), encoding="utf-8")
    asked: list[dict[str, Any]] = []
    with service(
        lambda body: f"for {body['messages'][-1]['content']} {body['seed']}", delay_s=0.02, seen=asked
    ) as address:
        arguments = ["collect", "sample", "--store", url, "--project", "first", "--model", f"{address}#m"]
        arguments += ["--prompts", str(tmp_path / "p.txt"), "--tasks", "6", "--set", "batch_size=4"]
        arguments += ["--set", "concurrency=1"]
        code = "from harken.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
        )
        deadline = time.monotonic() + 120
        while len(asked) < 11 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        first = len(asked)
        assert 11 <= first < 24
        ended = call(*arguments)
        assert ended.code == 0, ended.err
        # What was stored by the kill, in blocks of four, was not drawn again.
        assert 24 <= len(asked) <= 24 + 4 + 1
        assert "added 6 tasks; 0 were there already" in ended.out
        again = call(*arguments)
    assert "0 drawn, 24 there already" in again.out
    assert "added 0 tasks; 6 were there already" in again.out
    status = call("collect", "status", "--store", url)
    assert "completions" in status.out


def test_the_own_sampler_talks_as_it_samples(tiny_model_dir: Path) -> None:
    trunk = Trunk(load_model(str(tiny_model_dir)))
    settings = SamplingSettings(max_new_tokens=20)
    model = TrunkChat(trunk, None, settings, "tiny")
    messages = (Message(role="user", content="hello"),)
    ids = trunk.chat.encode_prompt(Prompt(id="x", messages=messages))
    for seed in range(4):
        whole = sample(trunk, None, [ids], settings, seeds=[seed])[0]
        pieces = list(model.stream(messages, seed=seed, is_stopped=lambda: False))
        assert "".join(piece.text for piece in pieces) == trunk.chat.decode_completion(whole.token_ids)
        assert pieces[-1].finish_reason == whole.finish_reason
        assert all(piece.finish_reason is None for piece in pieces[:-1])
    got = 0

    def is_stopped() -> bool:
        return got >= 3

    for _ in model.stream(messages, seed=0, is_stopped=is_stopped):
        got += 1
    assert got == 3
    with pytest.raises(DataError, match="tokens"):
        list(model.stream((Message(role="user", content="x" * 400),), seed=0, is_stopped=lambda: False))


def test_a_local_model_judges(tiny_model_dir: Path) -> None:
    config = JudgeConfig.model_validate({"sampling": {"max_new_tokens": 4}, "compute": {"dtype": "float32"}})
    with pytest.raises(UsageError, match="ADDRESS#MODEL"):
        open_judge("http://localhost:1/v1", config)
    judge = open_judge(str(tiny_model_dir), config)
    assert judge.kind == "model"
    assert "/" not in judge.name


def test_an_endpoint_reads_both_ways_of_answering_and_follows_nobody() -> None:
    settings = SamplingSettings(max_new_tokens=9, temperature=0.5)
    asked: list[dict[str, Any]] = []
    texts = iter(["two words", "PLAIN", "MOVED", "BROKEN"])
    with service(lambda body: next(texts), seen=asked) as address:
        model = parse_endpoint(f"{address}#m", settings)
        assert model is not None
        message = (Message(role="user", content="q"),)
        assert whole_answer(model, message, seed=5) == ("two words", "stop")
        assert whole_answer(model, message, seed=5) == ("not streamed", "stop")
        for problem in ("HTTP 302", "broke off"):
            with pytest.raises(SamplerError, match=problem):
                whole_answer(model, message, seed=5)
    assert asked[0]["max_tokens"] == 9
    assert asked[0]["temperature"] == 0.5
    assert asked[0]["seed"] == 5
    with pytest.raises(SamplerError, match="is it running"):
        whole_answer(model, message, seed=5)
    assert parse_endpoint("out/sft", settings) is None

"""The evaluation of a policy: nothing is found where nothing is, and every number can be recomputed from its files."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.artifacts import artifact_digest, read_manifest
from harken.config import EvaluateConfig, FullConfig, OptimizerConfig, SamplingConfig
from harken.errors import ResumeError, RewardError
from harken.evaluate.evaluate import evaluate
from harken.evaluate.text import distinct_n
from harken.lm.load import load_model
from harken.policy.sft import sft
from harken.records import Completion, Prompt
from harken.runs import Run
from tests.policy import material


def _config(**changes: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "completions_per_prompt": 2,
        "batch_size": 6,
        "sampling": SamplingConfig(max_new_tokens=6),
        "bootstrap_resamples": 500,
        "chat": material.RAW,
        "compute": material.COMPUTE,
    }
    return EvaluateConfig(**(settings | changes))


def _length(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [float(len(completion.message.content)) for completion in completions]


@pytest.fixture(scope="module")
def tuned(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that differs from the tiny one."""
    config = material.sft_config(tune=FullConfig(), epochs=3, optimizer=OptimizerConfig(learning_rate=5e-3))
    return sft(tiny_model_dir, material.demonstrations(), tmp_path_factory.mktemp("sft"), config)


def test_a_model_is_no_better_than_itself(tiny_model_dir: Path, tmp_path: Path) -> None:
    judges = {"reward": material.count_letter, "length": _length}
    found = evaluate(tiny_model_dir, tiny_model_dir, material.prompts(10), judges, tmp_path, _config())
    assert found["num_prompts"] == 10
    assert found["policy"]["kl_sequence"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for name in ("reward_score", "length", "length_tokens"):
        # Both sides draw with the same seeds, so the completions are the same.
        assert found["difference"][name] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for judge in judges:
        assert found["win_rate"][judge]["value"] == 0.5
    against = found["against"]
    assert {name: found["policy"][name] for name in against} == against
    assert found["finish_reasons"]["policy"] == found["finish_reasons"]["against"]


def test_every_number_can_be_recomputed(tuned: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    prompts = material.prompts(8)
    seen: list[tuple[Sequence[Prompt], Sequence[Completion]]] = []

    def judge(asked: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        seen.append((asked, completions))
        return _length(asked, completions)

    found = evaluate(tuned, tiny_model_dir, prompts, {"length": judge}, tmp_path, _config())
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found
    (asked, policy), (again, against) = seen
    assert [prompt.id for prompt in asked] == [prompt.id for prompt in again]
    assert [item.prompt_id for item in policy] == [prompt.id for prompt in prompts for _ in range(2)]
    means = {
        name: sum(len(item.message.content) for item in side) / 16
        for name, side in (("policy", policy), ("against", against))
    }
    assert found["policy"]["length"]["value"] == pytest.approx(means["policy"], rel=1e-9)
    assert found["difference"]["length"]["value"] == pytest.approx(means["policy"] - means["against"], abs=1e-9)
    tokens = [item.num_tokens or 0 for item in policy]
    assert found["policy"]["length_tokens"]["value"] == pytest.approx(sum(tokens) / 16, rel=1e-9)
    stopped = sum(item.finish_reason == "stop" for item in policy) / 16
    assert found["finish_reasons"]["policy"] == {"stop": stopped, "length": 1 - stopped}
    texts = [item.message.content for item in policy]
    assert found["policy"]["distinct_2"]["value"] == distinct_n(texts, 2)
    rows = material.rows(tmp_path / "samples.jsonl")
    assert [row["prompt"] for row in rows] == [prompt.messages[0].content for prompt in prompts]
    assert [row["policy"] for row in rows] == texts[::2]
    assert [row["length_policy"] for row in rows] == [float(len(text)) for text in texts[::2]]


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_kl_and_perplexity_are_those_of_plain_forward_passes(
    tuned: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    top_p: float,
) -> None:
    drawn: dict[str, list[list[int]]] = {}
    honest = evaluate.__globals__["sample"]

    def recording(trunk: Any, role: Any, ids: list[list[int]], *rest: Any, **options: Any) -> Any:
        items = honest(trunk, role, ids, *rest, **options)
        for place, item in enumerate(items):
            drawn.setdefault(trunk.source, []).append([*ids[place // 2], -1, *item.token_ids])
        return items

    read: list[int] = []
    reader = evaluate.__globals__["by_microbatch"]

    def counting(*arguments: Any, **options: Any) -> Any:
        read.append(1)
        return reader(*arguments, **options)

    monkeypatch.setitem(evaluate.__globals__, "sample", recording)
    monkeypatch.setitem(evaluate.__globals__, "by_microbatch", counting)
    config = _config(sampling=SamplingConfig(max_new_tokens=6, temperature=0.8, top_p=top_p))
    found = evaluate(tuned, tiny_model_dir, material.prompts(5), {}, tmp_path, config)
    models = {
        name: load_model(path, compute=material.COMPUTE).model for name, path in (("p", tuned), ("r", tiny_model_dir))
    }

    @torch.no_grad()
    def logprobs(name: str, row: list[int]) -> torch.Tensor:
        split = row.index(-1)
        ids = [*row[:split], *row[split + 1 :]]
        network: Any = models[name]
        table = (network(torch.tensor([ids])).logits[0].double() / 0.8).log_softmax(-1)
        return torch.stack([table[place - 1, ids[place]] for place in range(split, len(ids))])

    # Each side's own completions, and the reference the policy's.
    assert len(read) == 3
    own = drawn[str(tuned)]
    kl = sum(float((logprobs("p", row) - logprobs("r", row)).sum()) for row in own) / len(own)
    assert found["policy"]["kl_sequence"]["value"] == pytest.approx(kl, rel=1e-4)
    assert kl > 0.1
    for side, source in (("policy", tuned), ("against", tiny_model_dir)):
        nats = torch.cat([logprobs("r", row) for row in drawn[str(source)]])
        expected = math.exp(-float(nats.mean()))
        assert found[side]["perplexity_reference"]["value"] == pytest.approx(expected, rel=1e-4)


def test_a_finished_evaluation_is_returned_as_it_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    prompts = material.prompts(3)
    first = evaluate(tiny_model_dir, tiny_model_dir, prompts, {"length": _length}, tmp_path, _config())
    before = material.hashes(tmp_path)

    def must_not_be_asked(*arguments: object) -> list[float]:
        raise AssertionError("the evaluation was finished")

    again = evaluate(tiny_model_dir, tiny_model_dir, prompts, {"length": must_not_be_asked}, tmp_path, _config())
    assert again == first
    assert material.hashes(tmp_path) == before
    with pytest.raises(ResumeError, match="seed: 0 -> 1"):
        evaluate(tiny_model_dir, tiny_model_dir, prompts, {"length": _length}, tmp_path, _config(seed=1))


@pytest.mark.parametrize("moment", ["scoring", "marking it finished"])
def test_an_evaluation_that_was_stopped_ends_the_same(
    moment: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = material.prompts(3)
    evaluate(tiny_model_dir, tiny_model_dir, prompts, {"length": _length}, tmp_path / "whole", _config())

    def stops(*arguments: object) -> list[float]:
        raise KeyboardInterrupt

    judge = stops if moment == "scoring" else _length
    with monkeypatch.context() as patch:
        if moment != "scoring":
            patch.setattr(Run, "finish", stops)  # evaluation.json and samples.jsonl are there by then
        with pytest.raises(KeyboardInterrupt):
            evaluate(tiny_model_dir, tiny_model_dir, prompts, {"length": judge}, tmp_path / "halves", _config())
    evaluate(tiny_model_dir, tiny_model_dir, prompts, {"length": _length}, tmp_path / "halves", _config())
    for name in ("evaluation.json", "samples.jsonl"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_manifest_names_both_models(tuned: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    evaluate(tuned, tiny_model_dir, material.prompts(2), {}, tmp_path, _config())
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.parents["model"] == artifact_digest(tuned)
    assert manifest.parents["against"] == artifact_digest(tiny_model_dir)
    assert set(manifest.files) == {"config.json", "evaluation.json", "samples.jsonl"}


def test_max_prompts_takes_the_first_ones(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = _config(max_prompts=2)
    found = evaluate(tiny_model_dir, tiny_model_dir, material.prompts(6), {}, tmp_path, config)
    assert found["num_prompts"] == 2
    wanted = [prompt.messages[0].content for prompt in material.prompts(2)]
    assert [row["prompt"] for row in material.rows(tmp_path / "samples.jsonl")] == wanted


def test_a_judge_that_fails_names_the_prompt(tiny_model_dir: Path, tmp_path: Path) -> None:
    def judge(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [math.nan if "bb" in prompt.messages[0].content else 1.0 for prompt in prompts]

    with pytest.raises(RewardError, match=r"nan for prompt \"prompt 'tell bb'\""):
        evaluate(tiny_model_dir, tiny_model_dir, material.prompts(3), {"judge": judge}, tmp_path, _config())

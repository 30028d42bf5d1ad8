"""Supervised fine-tuning: it learns what it is shown, learns to stop, and its accounting is right."""

import math
from pathlib import Path

import pytest
import torch

from harken.artifacts import read_manifest
from harken.config import ComputeConfig, FullConfig, OptimizerConfig
from harken.errors import DataError, SelfTestError
from harken.lm.load import load_model
from harken.lm.sample import sample
from harken.lm.trunk import Trunk
from harken.policy import sft as sft_module
from harken.policy.sft import check_stop_labels, draw_subset, encode, sft
from harken.records import Demonstration, SamplingSettings
from tests.policy import material


def _facts(count: int) -> list[Demonstration]:
    """Five questions with one answer each; the held-out half asks the same ones."""
    items = material.demonstrations(count, heldout=count // 2)
    return [
        item.model_copy(update={"prompt": items[index % 5].prompt, "completion": items[index % 5].completion})
        for index, item in enumerate(items)
    ]


def test_sft_lowers_the_heldout_loss_and_learns_to_stop(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.sft_config(epochs=15, tune=FullConfig(), optimizer=OptimizerConfig(learning_rate=1e-2))
    folder = sft(tiny_model_dir, _facts(16), tmp_path, config)
    losses = [row["heldout_loss"] for row in material.rows(tmp_path / "metrics.jsonl") if "heldout_loss" in row]
    assert len(losses) == 2
    assert losses[0] > 4.0
    assert losses[1] < 0.02
    trunk = Trunk(load_model(folder, compute=material.COMPUTE, chat=material.RAW))
    ids = trunk.chat.encode_prompt(material.prompt("ask 2:"))
    # 10 tokens ("well then" and the end token) at under 0.02 nats each: a draw is right with chance exp(-0.2) = 0.82 or
    # more, so that fewer than 8 right of 16 have a chance below 1 in 1,000. Measured: 16; the seeds are fixed.
    drawn = sample(trunk, None, [ids], SamplingSettings(max_new_tokens=16), seeds=list(range(16)), n=16)
    texts = [trunk.chat.decode_completion(item.token_ids) for item in drawn if item.finish_reason == "stop"]
    assert texts.count("well then") >= 8


@pytest.mark.parametrize("packing", [True, False])
def test_microbatches_and_packing_change_neither_metrics_nor_weights(
    packing: bool, tiny_model_dir: Path, tmp_path: Path
) -> None:
    results: list[tuple[list[dict[str, float]], dict[str, torch.nn.Parameter]]] = []
    for name, size, packs in (("one", 4096, False), ("many", 24, packing)):
        compute = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=size, chunk_tokens=size)
        config = material.sft_config(compute=compute, packing=packs)
        folder = sft(tiny_model_dir, material.demonstrations(), tmp_path / name, config)
        weights = dict(load_model(folder, compute=material.COMPUTE).model.named_parameters())
        results.append((material.rows(tmp_path / name / "metrics.jsonl"), weights))
    (one, weights_one), (many, weights_many) = results
    for row, other in zip(one, many, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"padding_waste"}:
            assert other[name] == pytest.approx(row[name], rel=1e-5), name
    for name, value in weights_one.items():
        torch.testing.assert_close(weights_many[name], value, rtol=1e-5, atol=1e-5)


def test_the_first_loss_is_the_mean_over_completion_tokens(tiny_model_dir: Path, tmp_path: Path) -> None:
    items = material.demonstrations(4, heldout=0)
    sft(tiny_model_dir, items, tmp_path, material.sft_config(epochs=1))
    loaded = load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW)
    total, count = 0.0, 0
    for item in items:
        prompt = loaded.chat.encode_prompt(item.prompt)
        completion = [*loaded.chat.tokenizer.encode(item.completion.content), loaded.chat.end_id]
        with torch.no_grad():
            table = loaded.model(torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
        for place, token in enumerate(completion, start=len(prompt)):
            total -= float(table[place - 1, token])
            count += 1
    assert material.rows(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_random_subset_of_the_demonstrations_is_learned() -> None:
    subset = draw_subset(25, 10, 0)
    assert len(set(subset)) == 10
    assert set(subset) <= set(range(25))
    assert subset == draw_subset(25, 10, 0)
    assert subset != draw_subset(25, 10, 1)


def test_a_demonstration_that_is_too_long_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"demonstration-0.*has 16 tokens, the limit is 9"):
        sft(tiny_model_dir, material.demonstrations(), tmp_path, material.sft_config(max_length=9))


def test_no_training_demonstrations_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'train'"):
        sft(tiny_model_dir, material.demonstrations(0, heldout=2), tmp_path, material.sft_config())


def test_labels_without_the_stop_token_stop_the_run(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_end(*arguments: object) -> list[sft_module.Tokens]:
        found = encode(*arguments)  # pyright: ignore[reportArgumentType]
        return [sft_module.Tokens(tokens.prompt, tokens.completion[:-1]) for tokens in found]

    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    check_stop_labels(trunk, encode(trunk, material.demonstrations(), material.sft_config()))
    monkeypatch.setattr(sft_module, "encode", without_end)
    with pytest.raises(SelfTestError, match="stop token"):
        sft(tiny_model_dir, material.demonstrations(), tmp_path, material.sft_config())


def test_the_model_folder_names_its_parents(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = sft(
        tiny_model_dir,
        material.demonstrations(),
        tmp_path,
        material.sft_config(epochs=1),
        inputs={"demonstrations": "somewhere"},
    )
    run, model = read_manifest(tmp_path), read_manifest(folder)
    assert run is not None
    assert model is not None
    assert run.parents == model.parents
    assert model.parents["demonstrations"] == "somewhere"
    assert len(model.parents["model"]) == 64
    assert math.isfinite(material.rows(tmp_path / "metrics.jsonl")[-1]["loss"])

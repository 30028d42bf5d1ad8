"""Direct preference optimization: it starts at the reference, learns what is preferred, and computes nothing twice."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.artifacts import read_json, read_manifest
from harken.config import ComputeConfig, DpoLossConfig, FullConfig, LoraConfig, OptimizerConfig
from harken.errors import ConfigError, DataError, ResumeError, SelfTestError
from harken.lm.batch import Tokens
from harken.lm.forward import group_logprobs
from harken.lm.load import load_model
from harken.lm.trunk import Trunk
from harken.policy import preference as preference_module
from harken.policy.preference import check_start, dpo, encode, examine
from harken.records import Message, PreferencePair
from tests.policy import material

FAST = OptimizerConfig(learning_rate=1e-2)


def _logprob(model: Any, ids: Sequence[int], start: int) -> float:
    """Summed log-probability of the tokens from `start` on, by the model's own forward pass."""
    with torch.no_grad():
        table = model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
    return sum(float(table[place - 1, ids[place]]) for place in range(start, len(ids)))


def _naive_margins(before: Path, after: Path, pairs: Sequence[PreferencePair]) -> list[float]:
    """log pi/pi_ref of chosen minus that of rejected."""
    models = [load_model(folder, compute=material.COMPUTE, chat=material.RAW) for folder in (before, after)]
    found: list[float] = []
    for pair in pairs:
        margin = 0.0
        for side, sign in ((pair.chosen, 1), (pair.rejected, -1)):
            for loaded, own in zip(models, (-1, 1), strict=True):
                prompt = loaded.chat.encode_prompt(pair.prompt)
                ids = [*prompt, *loaded.chat.tokenizer.encode(side.content), loaded.chat.end_id]
                margin += sign * own * _logprob(loaded.model, ids, len(prompt))
        found.append(margin)
    return found


@pytest.mark.parametrize("tune", [LoraConfig(), FullConfig()], ids=["lora", "full"])
def test_the_first_loss_is_log_2_and_later_ones_are_lower(
    tune: LoraConfig | FullConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = material.dpo_config(tune=tune, epochs=5, optimizer=OptimizerConfig(learning_rate=3e-3))
    dpo(tiny_model_dir, material.pairs(), tmp_path, config)
    rows = material.rows(tmp_path / "metrics.jsonl")
    assert len(rows) == 20
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert sum(row["loss"] for row in rows[-4:]) / 4 < 0.6
    assert rows[-1]["chosen_reward"] - rows[-1]["rejected_reward"] == pytest.approx(rows[-1]["reward_margin"])


def test_dpo_learns_to_prefer_what_was_chosen_in_pairs_it_has_not_seen(tiny_model_dir: Path, tmp_path: Path) -> None:
    pairs = material.pairs(64, 40)
    folder = dpo(tiny_model_dir, pairs, tmp_path, material.dpo_config(epochs=4, batch_size=16, optimizer=FAST))
    found = read_json(tmp_path / "evaluation.json")
    # The chosen side has more of one letter. By chance 20 of 40 would be right, 32 or more once in 6,000 times.
    assert found["num_pairs"] == 40
    assert found["accuracy"]["value"] >= 0.8
    assert found["likelihood_accuracy"]["value"] > found["likelihood_accuracy_before"]["value"]
    # The margins of the evaluation are those of the model that was written, by an independent computation.
    margins = _naive_margins(tiny_model_dir, folder, pairs[64:])
    assert found["reward_margin"] == pytest.approx(0.1 * sum(margins) / 40, rel=1e-3)
    assert found["accuracy"]["value"] == pytest.approx(sum(margin > 0 for margin in margins) / 40)


def test_one_step_raises_the_chosen_and_lowers_the_rejected_side(tiny_model_dir: Path, tmp_path: Path) -> None:
    pairs = material.pairs(4, 0)
    config = material.dpo_config(optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant"))
    after = dpo(tiny_model_dir, pairs, tmp_path, config)
    assert all(margin > 0 for margin in _naive_margins(tiny_model_dir, after, pairs))


def test_labels_weights_beta_and_smoothing_enter_the_loss(tiny_model_dir: Path, tmp_path: Path) -> None:
    changes = [{"soft_label": 0.75, "weight": 2.0}, {}, {"weight": 0.5}, {"soft_label": 0.5}]
    items = material.pairs(4, 0)
    pairs = [pair.model_copy(update=change) for pair, change in zip(items, changes, strict=True)]
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    encoded = encode(trunk, pairs, material.dpo_config())
    with torch.no_grad():
        logprobs = group_logprobs(trunk, None, encoded, shared=False)
    shift = torch.tensor([[1.0, -1.0], [-2.0, 0.5], [0.5, 3.0], [4.0, 0.0]])
    labels, weights = torch.tensor([0.75, 1.0, 1.0, 0.5]), torch.tensor([2.0, 1.0, 0.5, 1.0])
    for beta, noise in ((0.1, 0.0), (0.7, 0.2)):
        total = 0.0
        # Label p with noise e is (1 - e) p + e (1 - p): .75, 1, 1, .5 become .65, .8, .8, .5 for e = .2.
        noisy = [0.75, 1.0, 1.0, 0.5] if noise == 0 else [0.65, 0.8, 0.8, 0.5]
        for row, label, weight in zip(shift.tolist(), noisy, weights.tolist(), strict=True):
            margin = beta * (row[0] - row[1])
            chance = 1 / (1 + math.exp(-margin))
            total -= weight * (label * math.log(chance) + (1 - label) * math.log(1 - chance))
        result = preference_module.pair_loss(
            DpoLossConfig(beta=beta, label_smoothing=noise),
            logprobs + shift,
            logprobs,
            labels_P=labels,
            weights_P=weights,
            denominator=4.5,
        )
        assert float(result.loss) == pytest.approx(total / 4.5, rel=1e-4)


def test_microbatches_and_shared_rows_change_neither_metrics_nor_weights(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[tuple[list[dict[str, float]], dict[str, torch.nn.Parameter]]] = []
    for name, size, shared in (("one", 4096, True), ("many", 24, True), ("apart", 4096, False), ("both", 24, False)):
        compute = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=size, chunk_tokens=size)
        config = material.dpo_config(compute=compute, optimizer=OptimizerConfig(learning_rate=1e-3, eps=1e-3))

        def can(*arguments: object, answer: bool = shared, **named: object) -> bool:
            return answer

        monkeypatch.setattr(preference_module, "can_share_prompts", can)
        folder = dpo(tiny_model_dir, material.pairs(), tmp_path / name, config)
        weights = dict(load_model(folder, compute=material.COMPUTE).model.named_parameters())
        results.append((material.rows(tmp_path / name / "metrics.jsonl"), weights))
    first_rows, first_weights = results[0]
    for rows, weights in results[1:]:
        for row, other in zip(first_rows, rows, strict=True):
            assert row.keys() == other.keys()
            for key in row.keys() - {"padding_waste"}:
                assert other[key] == pytest.approx(row[key], rel=1e-4, abs=1e-5), key
        for key, value in first_weights.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-5)


def test_the_reference_reads_each_pair_once(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str | None] = []

    def counted(trunk: Trunk, role: str | None, groups: Sequence[Sequence[Tokens]], **named: Any) -> torch.Tensor:
        read.extend([role] * len(groups))
        return group_logprobs(trunk, role, groups, **named)

    monkeypatch.setattr(preference_module, "group_logprobs", counted)
    config = material.dpo_config(epochs=3)
    with pytest.raises(material.Stopped):
        dpo(tiny_model_dir, material.pairs(8, 4), tmp_path, config, reporter=material.StopsAfter(4))
    dpo(tiny_model_dir, material.pairs(8, 4), tmp_path, config)
    assert read.count(None) == 8 + 4
    # Three epochs over 8 pairs, and the held-out ones at the end.
    assert read.count("policy") == 3 * 8 + 4


def test_reference_logprobs_of_other_pairs_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(material.Stopped):
        dpo(tiny_model_dir, material.pairs(), tmp_path, material.dpo_config(), reporter=material.StopsAfter(2))
    with pytest.raises(ResumeError, match="other pairs"):
        dpo(tiny_model_dir, material.pairs(seed=1), tmp_path, material.dpo_config())


def test_a_pair_that_is_too_long_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    # "say", eight letters and the end token.
    pairs = material.pairs()
    assert dpo(tiny_model_dir, pairs, tmp_path / "fits", material.dpo_config(max_length=12)).is_dir()
    longer = pairs[5].model_copy(update={"rejected": Message(role="assistant", content="abcdefghij")})
    with pytest.raises(DataError, match=r"pair 'pair-5' has 14 tokens, the limit is 12"):
        dpo(tiny_model_dir, [*pairs[:5], longer], tmp_path / "long", material.dpo_config(max_length=12))


def test_no_training_pairs_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'train'"):
        dpo(tiny_model_dir, material.pairs(0, 4), tmp_path, material.dpo_config())


def test_max_pairs_limits_the_training_pairs_only(tiny_model_dir: Path, tmp_path: Path) -> None:
    dpo(tiny_model_dir, material.pairs(16, 8), tmp_path, material.dpo_config(max_pairs=6))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.info["pairs"] == 6
    assert len(material.rows(tmp_path / "metrics.jsonl")) == 2
    assert read_json(tmp_path / "evaluation.json")["num_pairs"] == 8


def test_without_heldout_pairs_nothing_is_examined(tiny_model_dir: Path, tmp_path: Path) -> None:
    dpo(tiny_model_dir, material.pairs(4, 0), tmp_path, material.dpo_config())
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"num_pairs": 0}


def test_the_examination_counts_ties_half() -> None:
    # Rewards' differences: .1 * (1 - 0), .1 * (0 - 0), .1 * (-2 - 0).
    before = torch.tensor([[-4.0, -3.0], [-5.0, -5.0], [-6.0, -9.0]])
    after = before + torch.tensor([[1.0, 0.0], [2.0, 2.0], [-2.0, 0.0]])
    found = examine(before, after, material.dpo_config())
    assert found["accuracy"]["value"] == pytest.approx(0.5)
    assert found["reward_margin"] == pytest.approx(0.1 * (1 + 0 - 2) / 3)
    assert found["likelihood_accuracy_before"]["value"] == pytest.approx(1.5 / 3)
    # After: -3 = -3, -3 = -3, -8 > -9.
    assert found["likelihood_accuracy"]["value"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_a_policy_that_does_not_start_as_the_reference_stops_the_run(tiny_model_dir: Path) -> None:
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    config = material.dpo_config()
    encoded = encode(trunk, material.pairs(4, 0), config)
    # Completions of 9 tokens and beta .1: .009 is .01 nats a token, ten times what is allowed in fp32.
    check_start(trunk, {"chosen_reward": 1e-5, "rejected_reward": -1e-5}, encoded, config)
    with pytest.raises(SelfTestError, match=r"differ by 0.01 nats a token"):
        check_start(trunk, {"chosen_reward": 0.0, "rejected_reward": -0.009}, encoded, config)


def test_label_smoothing_of_one_half_says_nothing_and_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="label_smoothing"):
        DpoLossConfig(label_smoothing=0.5)

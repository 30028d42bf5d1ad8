"""Direct preference optimization: it starts at the reference, learns what is preferred, and computes nothing twice."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.artifacts import read_json, read_manifest
from harken.config import (
    ComputeConfig,
    CpoLossConfig,
    DpoLossConfig,
    FullConfig,
    HingeLossConfig,
    IpoLossConfig,
    KtoLossConfig,
    LoraConfig,
    OptimizerConfig,
    OrpoLossConfig,
    PreferenceLoss,
    RobustDpoLossConfig,
    SimpoLossConfig,
)
from harken.errors import ConfigError, DataError, ResumeError, SelfTestError
from harken.lm.batch import Tokens
from harken.lm.forward import group_logprobs
from harken.lm.load import load_model
from harken.lm.trunk import Trunk
from harken.policy import preference as preference_module
from harken.policy import preference_step
from harken.policy.best import BEST_FILE
from harken.policy.preference import dpo, examined, kto
from harken.policy.preference_data import encode, prepare, taken_apart
from harken.policy.preference_step import Examples, Whole, all_logprobs, check_start, preference_loss
from harken.policy.sft import ROLE
from harken.progress import Reporter
from harken.records import LabeledCompletion, Message, PreferencePair
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
        examples = Examples(encoded, logprobs, labels, weights, shared=False)
        settings = DpoLossConfig(beta=beta, label_smoothing=noise)
        result = preference_loss(settings, logprobs + shift, examples, Whole.of(examples, None))
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

    monkeypatch.setattr(preference_step, "group_logprobs", counted)
    config = material.dpo_config(epochs=3)
    with pytest.raises(material.Stopped):
        dpo(tiny_model_dir, material.pairs(8, 4), tmp_path, config, reporter=material.StopsAfter(4))
    dpo(tiny_model_dir, material.pairs(8, 4), tmp_path, config)
    assert read.count(None) == 8 + 4
    # Three epochs over 8 pairs, the held-out ones at the end, and 4 in the self-test of the start.
    assert read.count("policy") == 3 * 8 + 4 + 4


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


def test_the_examination_counts_ties_half(tiny_model_dir: Path) -> None:
    # Rewards' differences: .1 * (1 - 0), .1 * (0 - 0), .1 * (-2 - 0).
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    before = torch.tensor([[-4.0, -3.0], [-5.0, -5.0], [-6.0, -9.0]])
    after = before + torch.tensor([[1.0, 0.0], [2.0, 2.0], [-2.0, 0.0]])
    groups = encode(trunk, material.pairs(3, 0), material.dpo_config())
    examples = Examples(groups, before, torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), shared=False)
    found = examined(after, examples, material.dpo_config())
    assert found["accuracy"]["value"] == pytest.approx(0.5)
    assert found["reward_margin"] == pytest.approx(0.1 * (1 + 0 - 2) / 3)
    assert found["likelihood_accuracy_before"]["value"] == pytest.approx(1.5 / 3)
    # After: -3 = -3, -3 = -3, -8 > -9.
    assert found["likelihood_accuracy"]["value"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_a_policy_that_does_not_start_as_the_reference_stops_the_run(tiny_model_dir: Path) -> None:
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    trunk.add_role(ROLE, LoraConfig(), seed=0)
    groups = encode(trunk, material.pairs(4, 0), material.dpo_config())
    reference = all_logprobs(trunk, None, groups, material.COMPUTE, shared=False)
    ones = torch.ones(4)
    check_start(trunk, Examples(groups, reference, ones, ones, shared=False), material.COMPUTE)
    # Completions of 9 tokens: .09 is .01 nats a token, ten times what is allowed in fp32.
    with pytest.raises(SelfTestError, match=r"differ by 0.01 nats a token"):
        check_start(trunk, Examples(groups, reference + 0.09, ones, ones, shared=False), material.COMPUTE)


LOSSES: list[PreferenceLoss] = [
    DpoLossConfig(length_normalized=True, beta=2.0, nll_coef=0.1),
    DpoLossConfig(reference_free=True),
    RobustDpoLossConfig(),
    IpoLossConfig(),
    IpoLossConfig(length_normalized=True, reference_free=True),
    HingeLossConfig(nll_coef=0.1),
    HingeLossConfig(reference_free=True),
    OrpoLossConfig(odds_coef=1.0),
    SimpoLossConfig(),
    CpoLossConfig(),
    KtoLossConfig(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind}-{LOSSES.index(loss)}")
def test_every_loss_learns_and_computes_a_reference_only_if_it_has_one(
    loss: PreferenceLoss, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str | None] = []

    def counted(trunk: Trunk, role: str | None, groups: Sequence[Sequence[Tokens]], **named: Any) -> torch.Tensor:
        read.extend([role] * len(groups))
        return group_logprobs(trunk, role, groups, **named)

    monkeypatch.setattr(preference_step, "group_logprobs", counted)
    config = material.dpo_config(loss=loss, epochs=3, optimizer=FAST, heldout_every=6)
    dpo(tiny_model_dir, material.pairs(24, 8), tmp_path, config)
    rows, found = material.rows(tmp_path / "metrics.jsonl"), read_json(tmp_path / "evaluation.json")
    sides = 2 if loss.kind == "kto" else 1
    assert len(rows) == 3 * 6 * sides
    per_epoch = 6 * sides
    for metric, sign in (("loss", -1), ("reward_margin", 1)):
        first, last = (sum(row[metric] for row in some) for some in (rows[:per_epoch], rows[-per_epoch:]))
        assert sign * last > sign * first
    measured = [row for row in rows if "heldout_loss" in row]
    assert [row["step"] for row in measured] == list(range(6, len(rows) + 1, 6))
    assert measured[-1]["heldout_accuracy"] == pytest.approx(found["accuracy"]["value"])
    is_free = loss.kind in {"orpo", "simpo", "cpo"} or getattr(loss, "reference_free", False)
    # Of the held-out ones the starting model is read in any case, for `likelihood_accuracy_before`.
    assert read.count(None) == (8 if is_free else (24 + 8) * sides)


def test_kto_takes_pairs_apart_and_measures_against_other_prompts(tiny_model_dir: Path) -> None:
    pairs = [
        pair.model_copy(update={"prompt": material.prompt(f"ask {row}"), "soft_label": 0.75})
        for row, pair in enumerate(material.pairs(3, 0))
    ]
    config = material.dpo_config(loss=KtoLossConfig())
    items, heldout = prepare(pairs, config)
    assert heldout == []
    assert sorted(item.id for item in items) == [
        f"pair-{row}/{side}" for row in range(3) for side in ("chosen", "rejected")
    ]
    assert {item.soft_label for item in items} == {0.75, 0.25}
    hard = [item.soft_label for item in taken_apart(pairs[0], material.dpo_config(soft_labels=False))]
    assert hard == [1.0, 0.0]
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    owners = {tuple(own.completion): tuple(own.prompt) for own, _ in encode(trunk, items, config)}
    for own, other in encode(trunk, items, config):
        assert other.prompt == own.prompt
        assert owners[tuple(other.completion)] != tuple(own.prompt)


def test_kto_learns_from_labels_without_pairs(tiny_model_dir: Path, tmp_path: Path) -> None:
    items = [
        LabeledCompletion(
            id=f"{pair.id} {label}",
            prompt=pair.prompt,
            completion=pair.chosen if label else pair.rejected,
            soft_label=label,
            split=pair.split,
        )
        for row, pair in enumerate(material.pairs(96, 40))
        for label in [float(row % 2 == 0)]
    ]
    said = Said()
    kto(
        tiny_model_dir,
        items,
        tmp_path,
        material.kto_config(epochs=6, batch_size=16, optimizer=FAST, loss=KtoLossConfig(bad_weight=2.0)),
        reporter=said,
    )
    found = read_json(tmp_path / "evaluation.json")
    assert found["num_completions"] == 40
    # By chance 20 would be right, 30 or more once in 900 times.
    assert found["accuracy"]["value"] >= 0.75
    rows = material.rows(tmp_path / "metrics.jsonl")
    # Half of (good + 2 bad) / 16, the number of bad ones in the first batch being whole.
    num_bad = 32 * rows[0]["loss"] - 16
    assert num_bad == pytest.approx(round(num_bad), abs=1e-3)
    assert rows[0]["kl_baseline"] == pytest.approx(0.0, abs=1e-4)
    assert max(row["kl_baseline"] for row in rows) > 0.0
    assert any("weigh 48, the bad ones 96" in text for text in said.texts)
    with pytest.raises(DataError, match=r"the loss 'dpo' needs preference pairs"):
        dpo(tiny_model_dir, items, tmp_path / "dpo", material.dpo_config())


class Said(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.texts: list[str] = []

    def say(self, message: str) -> None:
        self.texts.append(message)


def test_the_policy_with_the_lowest_heldout_loss_is_kept(tiny_model_dir: Path, tmp_path: Path) -> None:
    # Four pairs learned with a large rate: the held-out loss falls, then rises far above its start.
    pairs = [*material.pairs(4, 0), *material.pairs(0, 16, seed=5)]
    changes: dict[str, Any] = {
        "epochs": 24,
        "optimizer": OptimizerConfig(learning_rate=3e-2, schedule="constant", warmup_fraction=0.0),
    }
    config = material.dpo_config(**changes, heldout_every=2, keep_best=True)
    with pytest.raises(material.Stopped):
        dpo(tiny_model_dir, pairs, tmp_path / "best", config, reporter=material.StopsAfter(20))
    dpo(tiny_model_dir, pairs, tmp_path / "best", config)
    rows = [row for row in material.rows(tmp_path / "best" / "metrics.jsonl") if "heldout_loss" in row]
    best = min(rows, key=lambda row: row["heldout_loss"])
    assert best["heldout_loss"] < rows[-1]["heldout_loss"]
    manifest, found = read_manifest(tmp_path / "best"), read_json(tmp_path / "best" / "evaluation.json")
    assert manifest is not None
    assert manifest.info["best_step"] == best["step"]
    assert found["accuracy"]["value"] == pytest.approx(best["heldout_accuracy"])
    assert not (tmp_path / "best" / BEST_FILE).exists()
    # As if the run had ended there.
    plain = material.dpo_config(**{**changes, "epochs": best["step"]})
    dpo(tiny_model_dir, pairs, tmp_path / "plain", plain)
    assert material.hashes(tmp_path / "plain" / "model", keep=_is_weights) == material.hashes(
        tmp_path / "best" / "model", keep=_is_weights
    )


def _is_weights(path: Path) -> bool:
    return path.suffix == ".safetensors"


def test_keeping_the_best_needs_a_measurement() -> None:
    with pytest.raises((ConfigError, ValueError), match="needs heldout_every"):
        material.dpo_config(keep_best=True)


def test_label_smoothing_of_one_half_says_nothing_and_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="label_smoothing"):
        DpoLossConfig(label_smoothing=0.5)

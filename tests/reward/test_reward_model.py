"""Reward training recovers what the pairs say, and a saved reward model scores as it did in memory."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.artifacts import artifact_digest, read_manifest
from harken.config import ComputeConfig, FullConfig, LoraConfig, OptimizerConfig, RewardConfig, Tune
from harken.errors import DataError, RewardError
from harken.estimates import wilson
from harken.lm.batch import Tokens, pad
from harken.lm.forward import sequence_scores
from harken.lm.load import load_model
from harken.lm.sample import completion_seeds, sample
from harken.lm.trunk import Trunk
from harken.policy.ppo import ppo
from harken.records import Completion, Prompt, SamplingSettings
from harken.reward import train as train_module
from harken.reward.functions import load_reward
from harken.reward.model import ROLE, RewardModel, StoredRewardModel
from harken.reward.train import train_reward
from tests.policy import material

FAST = OptimizerConfig(learning_rate=1e-2)
LORA = LoraConfig(rank=8, alpha=16.0)


def _accuracy(out: Path) -> float:
    return json.loads((out / "evaluation.json").read_text())["accuracy"]["value"]


def _texts() -> tuple[list[Prompt], list[Completion]]:
    prompts = [material.prompt(text) for text in ("say", "tell me", "now")] * 3
    texts = ["eee", "abc", "the tree", "e", "", "x" * 20, "hey", "see me", "b"]
    reasons: list[Any] = ["stop", "length", None] * 3
    items = [
        material.completion_of(prompt, text, finish_reason=reason)
        for prompt, text, reason in zip(prompts, texts, reasons, strict=True)
    ]
    return prompts, items


def _load(folder: Path, *, trunk: Trunk | None = None) -> RewardModel:
    stored = StoredRewardModel(folder, compute=material.COMPUTE)
    if trunk is not None:
        stored.attach(trunk)
    return stored.model()


def test_training_recovers_a_known_reward(tiny_model_dir: Path, tmp_path: Path) -> None:
    # The better completion has more of one letter; 300 held-out pairs. Measured: 0.997.
    config = material.reward_config(batch_size=16, tune=FullConfig(), optimizer=FAST)
    pairs = material.pairs(600, 300)
    train_reward(tiny_model_dir, pairs, tmp_path, config)
    assert _accuracy(tmp_path) > 0.95


def test_permuted_labels_teach_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    # Each training pair is turned around with chance 1/2. What one run memorizes moves its 300 held-out pairs together:
    # over seeds 0-5 the accuracy had mean 0.49 and spread 0.13, so that a mean of four is off by 0.2 in 1 of 400 times.
    found: list[float] = []
    for seed in range(4):
        rng = random.Random(seed)
        pairs = [
            pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen})
            if pair.split == "train" and rng.random() < 0.5
            else pair
            for pair in material.pairs(600, 300)
        ]
        config = material.reward_config(batch_size=16, tune=FullConfig(), optimizer=FAST)
        train_reward(tiny_model_dir, pairs, tmp_path / str(seed), config)
        found.append(_accuracy(tmp_path / str(seed)))
    assert 0.3 < sum(found) / 4 < 0.7


@dataclass(frozen=True)
class Trained:
    base: Path
    out: Path

    @property
    def model(self) -> Path:
        return self.out / "model"


@pytest.fixture(scope="module", params=[LORA, FullConfig()], ids=["lora", "full"])
def trained(request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("reward")
    base = shutil.copytree(tiny_model_dir, folder / "base")
    config = material.reward_config(tune=request.param, optimizer=FAST, normalization_samples=16)
    train_reward(base, material.pairs(), folder / "run", config, inputs={"pairs": "drawn"})
    return Trained(base, folder / "run")


@pytest.mark.parametrize("tune", [LORA, FullConfig()], ids=["lora", "full"])
def test_a_loaded_reward_model_scores_as_it_did_in_memory(
    tune: Tune, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[RewardModel] = []
    honest = RewardModel.save

    def save(reward: RewardModel, *arguments: Any) -> None:
        kept.append(reward)
        honest(reward, *arguments)

    monkeypatch.setattr(RewardModel, "save", save)
    config = material.reward_config(tune=tune, optimizer=FAST)
    folder = train_reward(tiny_model_dir, material.pairs(), tmp_path, config)
    prompts, completions = _texts()
    scores = kept[0](prompts, completions)
    assert max(scores) - min(scores) > 0.1
    assert _load(folder)(prompts, completions) == pytest.approx(scores, rel=1e-5, abs=1e-5)


def test_scores_of_its_own_samples_have_mean_0_and_spread_1(trained: Trained) -> None:
    # The same completions drawn again: prompts of the pairs (there is one, "say") and the seeds of normalization.
    reward = _load(trained.model)
    base = Trunk(load_model(trained.base, compute=material.COMPUTE, chat=material.RAW))
    ids = base.chat.encode_prompt(material.prompt("say"))
    drawn = sample(
        base, None, [ids] * 16, SamplingSettings(max_new_tokens=4), seeds=completion_seeds(16, 0, "normalize")
    )
    completions = [
        material.completion_of(
            material.prompt("say"), base.chat.decode_completion(item.token_ids), finish_reason=item.finish_reason
        )
        for item in drawn
    ]
    scores = torch.tensor(reward([material.prompt("say")] * 16, completions), dtype=torch.float64)
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, rel=1e-4)


def test_batch_size_and_order_change_no_score(trained: Trained) -> None:
    prompts, completions = _texts()
    reward = _load(trained.model)
    scores = reward(prompts, completions)
    alone = [reward([prompt], [item])[0] for prompt, item in zip(prompts, completions, strict=True)]
    assert alone == pytest.approx(scores, rel=1e-5, abs=1e-5)
    assert reward(prompts[::-1], completions[::-1]) == pytest.approx(scores[::-1], rel=1e-5, abs=1e-5)
    narrow = StoredRewardModel(trained.model, compute=ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=1))
    assert narrow(prompts, completions) == pytest.approx(scores, rel=1e-5, abs=1e-5)


def test_a_completion_that_was_cut_off_is_read_where_training_read(trained: Trained) -> None:
    reward = _load(trained.model)
    prompt = material.prompt("say")
    assert reward.encode(prompt, "abc").completion[-1] == reward.chat.end_id
    scores = [
        reward([prompt], [material.completion_of(prompt, "abc", finish_reason=reason)])[0]
        for reason in ("stop", "length", None)
    ]
    assert scores[0] == scores[1] == scores[2]


def test_prompts_are_rendered_as_in_training(trained: Trained) -> None:
    # The base has a chat template of its own, training used none: loaded alone or beside a policy that renders
    # otherwise, the reward model must read the same tokens.
    prompts, completions = _texts()
    policy = Trunk(load_model(trained.base, compute=material.COMPUTE))
    alone, shared = _load(trained.model), _load(trained.model, trunk=policy)
    assert policy.chat.encode_prompt(prompts[0]) != alone.encode(prompts[0], "").prompt
    assert alone.encode(prompts[0], "x").prompt == list(alone.chat.tokenizer.encode("say"))
    assert shared(prompts, completions) == pytest.approx(alone(prompts, completions), rel=1e-5, abs=1e-5)


def test_a_reward_model_shares_the_trunk_of_its_base_only(trained: Trained, tiny_model_dir: Path) -> None:
    same = Trunk(load_model(trained.base, compute=material.COMPUTE, chat=material.RAW))
    other = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    is_adapter = (trained.model / "adapter_config.json").exists()
    assert (_load(trained.model, trunk=same).trunk is same) == is_adapter
    assert _load(trained.model, trunk=other).trunk is not other


def test_a_base_that_is_gone_is_an_error(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.out, tmp_path / "run")
    hidden = trained.base.rename(trained.base.with_name("hidden"))
    try:
        if (run / "model" / "adapter_config.json").exists():
            with pytest.raises(DataError, match=r"its base model .*base' is gone"):
                _load(run / "model")
        else:
            _load(run / "model")
    finally:
        hidden.rename(trained.base)


def test_run_and_base_can_move_together(trained: Trained, tmp_path: Path) -> None:
    prompts, completions = _texts()
    scores = _load(trained.model)(prompts, completions)
    moved = shutil.copytree(trained.out.parent, tmp_path / "elsewhere")
    settings = json.loads((moved / "run" / "model" / "reward.json").read_text())
    hidden = trained.base.rename(trained.base.with_name("hidden"))
    try:
        assert not Path(settings["base"]).exists()
        assert _load(moved / "run" / "model")(prompts, completions) == pytest.approx(scores, rel=1e-6)
    finally:
        hidden.rename(trained.base)


@pytest.mark.parametrize("name", ["reward.json", "head.safetensors"])
def test_a_changed_file_is_refused(name: str, trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.model, tmp_path / "model")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(DataError, match=f"{name}: sha256 is .*the manifest says"):
        _load(folder)


def test_a_folder_that_is_no_reward_model_is_an_error(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match=r"no reward\.json in it"):
        _load(tiny_model_dir)
    with pytest.raises(DataError, match=r"no reward\.json in it"):
        load_reward(str(tiny_model_dir))


def test_the_reward_models_manifest_names_its_parents(trained: Trained) -> None:
    run, model = read_manifest(trained.out), read_manifest(trained.model)
    assert run is not None
    assert model is not None
    assert model.kind == "reward_model"
    assert model.parents == run.parents
    assert model.parents == {"model": artifact_digest(trained.base), "pairs": "drawn"}


@pytest.mark.parametrize("soft", [True, False])
def test_microbatches_change_neither_metrics_nor_weights(soft: bool, tiny_model_dir: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    pairs = [
        pair.model_copy(
            update={"soft_label": 0.5 + rng.random() / 2, "weight": rng.random(), "strength": rng.randrange(4)}
        )
        for pair in material.pairs()
    ]
    rows: list[list[dict[str, float]]] = []
    for name, size in (("one", 8192), ("many", 30)):
        compute = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=size)
        config = material.reward_config(compute=compute, soft_labels=soft, batch_size=8)
        train_reward(tiny_model_dir, pairs, tmp_path / name, config)
        rows.append(material.rows(tmp_path / name / "metrics.jsonl"))
    for one, many in zip(*rows, strict=True):
        for name in one.keys() - {"padding_waste"}:
            assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


def test_the_first_loss_is_bradley_terry_with_margins(tiny_model_dir: Path, tmp_path: Path) -> None:
    # -log sigmoid(chosen - rejected - margin) with labels 1, plus centering, scored with the model before training.
    pairs = [pair.model_copy(update={"strength": index % 4}) for index, pair in enumerate(material.pairs(4, 0))]
    config = material.reward_config(normalization_samples=0, centering=0.01)
    train_reward(tiny_model_dir, pairs, tmp_path, config)
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    seed = train_module.derive_seed(config.seed, "adapters")
    trunk.add_role("reward", config.tune, seed=seed, head=True)
    reward = RewardModel(trunk, material.COMPUTE)
    total = 0.0
    for pair in pairs:
        sides = [reward.encode(pair.prompt, side.content) for side in (pair.chosen, pair.rejected)]
        chosen, rejected = reward.score_tokens(sides).double()
        margin = [0.0, 1 / 3, 2 / 3, 1.0][pair.strength]
        total += float(torch.log(1 + torch.exp(-(chosen - rejected - margin))) + 0.01 * (chosen + rejected) ** 2)
    assert material.rows(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(total / 4, rel=1e-5)


def test_pairs_with_long_prompts_share_a_row_and_learn_the_same(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = material.prompt("say something in eight letters")
    pairs = [pair.model_copy(update={"prompt": asked}) for pair in material.pairs()]
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    reward = RewardModel(trunk, material.COMPUTE)
    long, short = (
        [train_module.encode_pair(reward, pair, material.reward_config()) for pair in some]
        for some in (pairs, material.pairs())
    )
    # Of 2 x (30 + 9) tokens 29 are computed twice; of 2 x (3 + 9) tokens 2 are.
    assert train_module.should_share(trunk, long)
    assert not train_module.should_share(trunk, short)
    train_reward(tiny_model_dir, pairs, tmp_path / "shared", material.reward_config())
    monkeypatch.setattr(train_module, "WORTH_SHARING", 1.0)
    train_reward(tiny_model_dir, pairs, tmp_path / "apart", material.reward_config())
    rows = [material.rows(tmp_path / name / "metrics.jsonl") for name in ("shared", "apart")]
    for one, other in zip(*rows, strict=True):
        for name in one.keys() - {"padding_waste"}:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


def test_a_completion_in_several_pairs_is_read_once(tiny_model_dir: Path) -> None:
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    trunk.add_role(ROLE, LoraConfig(rank=2), seed=0, head=True)
    best, middle, worst = (Tokens([5, 6], [9 * size] * size) for size in (3, 2, 4))
    pairs = [(best, middle), (best, worst), (middle, worst)]
    assert sorted(train_module.distinct_sides(pairs)) == sorted([best, middle, worst])
    with torch.no_grad():
        chosen, rejected = train_module.paired_scores(trunk, pairs)
        alone = [float(sequence_scores(trunk, ROLE, pad([side]))) for side in (best, middle, worst)]
    assert chosen.tolist() == pytest.approx([alone[0], alone[0], alone[1]], rel=1e-4, abs=1e-6)
    assert rejected.tolist() == pytest.approx([alone[1], alone[2], alone[2]], rel=1e-4, abs=1e-6)


def test_pairs_that_share_completions_stay_in_one_pass() -> None:
    texts = [Tokens([1], [size]) for size in range(8)]  # 2 tokens each
    group = [(texts[high], texts[low]) for high in range(4) for low in range(high)]
    other = [(texts[high + 4], texts[low + 4]) for high in range(4) for low in range(high)]
    assert train_module.pair_microbatches(group + other, 8) == [list(range(6)), list(range(6, 12))]
    assert train_module.pair_microbatches(group + other, 16) == [list(range(12))]
    assert train_module.pair_microbatches(group, 1) == [[row] for row in range(6)]


def test_ppo_refuses_a_reward_model_that_may_be_a_coin(tiny_model_dir: Path, tmp_path: Path) -> None:
    # Right in 8 of 12 held-out pairs: Wilson's interval is 39 % to 86 %. In 12 of 12: 76 % to 100 %.
    folder = train_reward(tiny_model_dir, material.pairs(), tmp_path / "reward", material.reward_config())
    settings = json.loads((folder / "reward.json").read_text())
    assert settings["heldout_accuracy"] == json.loads((tmp_path / "reward/evaluation.json").read_text())["accuracy"]
    config = material.ppo_config(steps=1)

    def run(right: int, name: str, **score: Any) -> Path:
        settings["heldout_accuracy"] = {**wilson(right, 12).as_dict(), "n": 12}
        again = RewardModel(StoredRewardModel(folder, compute=material.COMPUTE).model().trunk, material.COMPUTE)
        again.save(tmp_path / name, {"heldout_accuracy": settings["heldout_accuracy"]}, {})
        reward = load_reward([f"0.5*{tmp_path / name}", f"0.5*{tmp_path / name}"], compute=material.COMPUTE)
        asked = config.model_copy(update={"score": config.score.model_copy(update=score)})
        return ppo(tiny_model_dir, material.prompts(), reward, tmp_path / f"{name}-ppo", asked)

    with pytest.raises(RewardError, match=r"unsure: right in 67% of 12 .* 39% to 86%.*score\.accept_chance = true"):
        run(8, "unsure")
    assert not (tmp_path / "unsure-ppo").exists(), "refused before anything is written"
    assert run(8, "accepted", accept_chance=True).is_dir()
    assert run(12, "sure").is_dir()


def test_a_pair_that_is_too_long_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = RewardConfig(max_length=10, chat=material.RAW, compute=material.COMPUTE)
    with pytest.raises(DataError, match=r"pair-0.* has 12 tokens, the limit is 10"):
        train_reward(tiny_model_dir, material.pairs(), tmp_path, config)


def test_no_training_pairs_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'train'"):
        train_reward(tiny_model_dir, material.pairs(0, 4), tmp_path, material.reward_config())


def test_scoring_tokens_bound_a_pass_and_not_the_scores(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    trunk.add_role("reward", None, seed=0, head=True)
    prompts, completions = _texts()
    passes: list[int] = []
    hidden = trunk.hidden

    def counted(role: str | None, batch: Any) -> torch.Tensor:
        passes.append(int(batch.lengths.sum()))
        return hidden(role, batch)

    monkeypatch.setattr(trunk, "hidden", counted)
    found: list[list[float]] = []
    for limit in (8192, 40):
        passes.clear()
        compute = material.COMPUTE.model_copy(update={"scoring_tokens": limit})
        found.append(RewardModel(trunk, compute)(prompts, completions))
        assert (len(passes) == 1) == (limit == 8192)
        assert max(passes) <= limit
    assert found[0] == pytest.approx(found[1], abs=1e-5)

"""N steps, a stop, and N more end in the same bytes as 2N steps without a stop; so does going back a checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harken.config import (
    AdaptiveKl,
    FullConfig,
    LoraConfig,
    MaskConfig,
    OptimizerConfig,
    PpoLossConfig,
    PtxConfig,
    SamplingConfig,
    Tune,
    ValueConfig,
    preset,
)
from harken.errors import ResumeError
from harken.policy.ilql import ilql
from harken.policy.online_dpo import online_dpo
from harken.policy.ppo import ppo
from harken.policy.preference import dpo, kto
from harken.policy.sft import sft
from harken.progress import QUIET, Reporter
from harken.reward.train import train_reward
from tests.policy import material

Stage = Callable[[Path, Reporter], Path]
LORA = LoraConfig(rank=4, alpha=8.0)


def _sft(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # 12 demonstrations in batches of 4, twice: 6 steps.
    config = material.sft_config(tune=tune, save_every=save_every)
    return lambda out, reporter: sft(model, material.demonstrations(), out, config, reporter=reporter)


def _reward(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # 16 pairs in batches of 4, once: 4 steps.
    config = material.reward_config(tune=tune, save_every=save_every)
    return lambda out, reporter: train_reward(model, material.pairs(), out, config, reporter=reporter)


def _dpo(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # 16 pairs in batches of 4, once: 4 steps.
    config = material.dpo_config(tune=tune, save_every=save_every)
    return lambda out, reporter: dpo(model, material.pairs(), out, config, reporter=reporter)


def _kto(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # 16 pairs are 32 completions, in batches of 8: 4 steps; the held-out ones are measured and the best step kept.
    config = material.kto_config(tune=tune, save_every=save_every, batch_size=8, heldout_every=1, keep_best=True)
    return lambda out, reporter: kto(model, material.pairs(), out, config, reporter=reporter)


def _online_dpo(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # The reference moves after the second and fourth step.
    config = material.online_dpo_config(tune=tune, save_every=save_every, reference_every=2)
    return lambda out, reporter: online_dpo(
        model, material.prompts(), material.count_letter, out, config, reporter=reporter
    )


def _ppo(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # Every part with a memory is at work: the KL controller, two schedules, an average of the weights, prompts that
    # begin a second lap.
    config = material.ppo_config(
        tune=tune,
        save_every=save_every,
        kl=AdaptiveKl(coef=0.1, target=0.1, horizon=20.0),
        policy_optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_fraction=0.5, ema_decay=0.8),
    )
    return lambda out, reporter: ppo(model, material.prompts(), material.count_letter, out, config, reporter=reporter)


def _ilql(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # 16 completions in batches of 4, once: 4 steps; the target heads move at steps 2 and 4.
    config = material.ilql_config(tune=tune, save_every=save_every)
    return lambda out, reporter: ilql(model, material.scored(), out, config, reporter=reporter)


def _nlpo(model: Path, tune: Tune, save_every: int = 1) -> Stage:
    # The mask is renewed at steps 3 only, so that a checkpoint's is not the policy of that moment.
    config = material.ppo_config(tune=tune, save_every=save_every, mask=MaskConfig(top_p=0.8, refresh_every=3))
    return lambda out, reporter: ppo(model, material.prompts(), material.count_letter, out, config, reporter=reporter)


def _kin(name: str, **changes: object) -> Callable[[Path, Tune, int], Stage]:
    """A kin of PPO, or PPO with more options that have a memory."""

    def make(model: Path, tune: Tune, save_every: int = 1) -> Stage:
        base = material.ppo_config(tune=tune, save_every=save_every)
        if name == "ppo":
            config = base.model_copy(update=changes)
        else:
            kept = ("steps", "prompts_per_step", "completions_per_prompt", "sampling", "score", "num_samples")
            kept += ("tune", "save_every", "chat", "compute", "policy_optimizer")
            same = {key: getattr(base, key) for key in kept}
            config = preset(name, **(same | {"minibatch_size": 8} | changes))
        return lambda out, reporter: ppo(
            model, material.prompts(), material.count_letter, out, config, reporter=reporter
        )

    return make


# Of the kin one of each kind: what they differ in has no memory but the prompts that were used.
OPTIONS = {
    "options": _kin(
        "ppo",
        loss=PpoLossConfig(entropy_target=1.0, entropy_coef=0.01),
        value=ValueConfig(critic="own", normalize=True, warmup_steps=1),
    ),
    "head": _kin("ppo", value=ValueConfig(critic="head")),
    "rloo": _kin("rloo"),
    "grpo": _kin("grpo"),
    "reinforce-pp": _kin("reinforce-pp"),
    "remax": _kin("remax"),
    "gspo": _kin("gspo"),
    "cispo": _kin("cispo"),
    "dr-grpo": _kin("dr-grpo"),
    "dapo": _kin("dapo"),
}


STAGES = {"sft": (_sft, 6), "reward": (_reward, 4), "dpo": (_dpo, 4), "kto": (_kto, 4), "online-dpo": (_online_dpo, 4)}
STAGES |= {"ppo": (_ppo, 4), "ilql": (_ilql, 4), "nlpo": (_nlpo, 4)}
CASES = [(name, tune) for name in STAGES for tune in (LORA, FullConfig())]


def _stop_at(stage: Stage, out: Path, step: int) -> None:
    with pytest.raises(material.Stopped):
        stage(out, material.StopsAfter(step))


def _assert_same_end(one: Path, other: Path) -> None:
    """Compare models byte by byte, and all rows but the clock's."""
    assert material.hashes(one / "model") == material.hashes(other / "model")
    for name in ("metrics.jsonl", "samples.jsonl", "evaluation.json"):
        assert (one / name).exists() == (other / name).exists()
        if name.endswith(".jsonl") and (one / name).exists():
            assert material.rows(one / name) == material.rows(other / name)
    if (one / "evaluation.json").exists():
        assert (one / "evaluation.json").read_bytes() == (other / "evaluation.json").read_bytes()


@pytest.mark.parametrize(("name", "tune"), CASES, ids=lambda value: getattr(value, "kind", value))
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    name: str, tune: Tune, tiny_model_dir: Path, tmp_path: Path
) -> None:
    make, total = STAGES[name]
    stage = make(tiny_model_dir, tune)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    _stop_at(stage, whole, total - 1)
    _stop_at(stage, halves, total // 2)
    _stop_at(stage, halves, total - 1)
    # The newest checkpoint holds all weights, both optimizers' moments, and the loop's own numbers.
    checkpoint = f"checkpoints/step-{total - 1:08d}"
    saved = material.hashes(whole / checkpoint)
    assert {file.split(".")[-1] for file in saved} == {"safetensors", "json"}
    assert saved == material.hashes(halves / checkpoint)
    # One goes on from there, the other is rolled back to the checkpoint before.
    shutil.rmtree(halves / checkpoint)
    assert (halves / f"checkpoints/step-{total - 2:08d}").is_dir()
    stage(whole, QUIET)
    stage(halves, QUIET)
    assert len(material.rows(whole / "metrics.jsonl")) == total
    _assert_same_end(whole, halves)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_kin_resumes_to_the_same_bytes(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    stage = OPTIONS[name](tiny_model_dir, LORA, 1)
    stage(tmp_path / "whole", QUIET)
    _stop_at(stage, tmp_path / "halves", 2)
    stage(tmp_path / "halves", QUIET)
    _assert_same_end(tmp_path / "whole", tmp_path / "halves")


def test_ptx_goes_on_with_the_demonstrations_that_are_next(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "demonstrations.jsonl"
    data.write_text("".join(item.model_dump_json() + "\n" for item in material.demonstrations()))
    stage = _kin("ppo", ptx=PtxConfig(data=str(data), batch_size=3))(tiny_model_dir, LORA, 1)
    stage(tmp_path / "whole", QUIET)
    _stop_at(stage, tmp_path / "halves", 2)
    stage(tmp_path / "halves", QUIET)
    _assert_same_end(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("name", STAGES)
def test_steps_after_the_last_checkpoint_are_done_again(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    # Checkpoints at step 2 only; the run stops after 3, so row 3 is dropped and written anew.
    make, _ = STAGES[name]
    stage = make(tiny_model_dir, LORA, 2)
    stage(tmp_path / "whole", QUIET)
    _stop_at(stage, tmp_path / "halves", 3)
    assert [row["step"] for row in material.rows(tmp_path / "halves" / "metrics.jsonl")] == [1, 2, 3]
    stage(tmp_path / "halves", QUIET)
    _assert_same_end(tmp_path / "whole", tmp_path / "halves")


def test_a_reward_that_fails_in_the_middle_of_a_step_costs_only_that_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.ppo_config()
    calls: list[int] = []

    def fails_at_third(*arguments: object) -> list[float]:
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return material.count_letter(*arguments)  # pyright: ignore[reportArgumentType]

    ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        ppo(tiny_model_dir, material.prompts(), fails_at_third, tmp_path / "halves", config)
    assert [row["step"] for row in material.rows(tmp_path / "halves" / "metrics.jsonl")] == [1, 2]
    ppo(tiny_model_dir, material.prompts(), fails_at_third, tmp_path / "halves", config)
    assert len(calls) == 5, "steps 1 and 2 once, step 3 twice, step 4 once"
    _assert_same_end(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_run_is_returned_as_it_is(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    make, _ = STAGES[name]
    stage = make(tiny_model_dir, LORA)
    first = stage(tmp_path / "run", QUIET)
    before = material.hashes(tmp_path / "run")
    assert stage(tmp_path / "run", material.StopsAfter(0)) == first
    assert material.hashes(tmp_path / "run") == before
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_resuming_with_another_config_says_what_differs(tiny_model_dir: Path, tmp_path: Path) -> None:
    start = material.ppo_config()
    changed = material.ppo_config(seed=7, sampling=SamplingConfig(max_new_tokens=5))

    def run(config: material.PpoConfig) -> None:
        reporter = material.StopsAfter(1)
        ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, config, reporter=reporter)

    with pytest.raises(material.Stopped):
        run(start)
    with pytest.raises(ResumeError) as caught:
        run(changed)
    assert "config.sampling.max_new_tokens: 6 -> 5" in str(caught.value)
    assert "config.seed: 0 -> 7" in str(caught.value)

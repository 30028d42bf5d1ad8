"""A policy whose completions another engine draws learns from its own distribution all the same."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harken.config import (
    FullConfig,
    GaeConfig,
    LoraConfig,
    OwnSamplerConfig,
    PpoConfig,
    VllmConfig,
    VllmServerConfig,
    build,
)
from harken.errors import ConfigError, SelfTestError
from harken.policy.ppo import ppo, prepare
from harken.policy.rollout import Rollout, rollout, score
from harken.policy.selftest import check_first_rollout
from harken.policy.update import update
from tests.lm.stand_in import EngineOnServer, serving
from tests.policy import material

WEIGHTS = {"importance_weight_mean", "importance_truncated", "importance_effective"}


def _with_mismatch(experience: Rollout, nats: float) -> Rollout:
    """The sampler gave every token `nats` less than the policy does."""
    shifted = experience.old_logprobs - nats * experience.batch.completion_mask
    return replace(experience, sampler_logprobs=shifted)


def _learn(model: Path, sampler: Any, nats: float) -> dict[str, float]:
    """Metrics of one update in one minibatch on completions drawn with a mismatch."""
    config = material.ppo_config(epochs=1, minibatch_size=8, advantage=GaeConfig(whiten=False))
    state = prepare(model, material.count_letter, config)
    experience = _with_mismatch(rollout(state.trunk, material.prompts(), config, step=0), nats)
    scores = score(experience, material.count_letter)
    return update(state, experience, scores, config.model_copy(update={"sampler": sampler}), step=0)


def test_the_policy_loss_is_weighted_and_the_value_loss_is_not(tiny_model_dir: Path) -> None:
    plain = _learn(tiny_model_dir, OwnSamplerConfig(), 0.0)
    # Probability under the policy over that under the sampler: exp(0.4) = 1.4918 for every token, below the cap of 2.
    found = _learn(tiny_model_dir, VllmConfig(), 0.4)
    assert found["policy_loss"] == pytest.approx(1.4918247 * plain["policy_loss"], rel=1e-5)
    assert found["grad_norm_policy"] == pytest.approx(1.4918247 * plain["grad_norm_policy"], rel=1e-4)
    assert found["value_loss"] == plain["value_loss"]
    assert found["importance_weight_mean"] == pytest.approx(1.4918247, rel=1e-5)
    assert found["importance_truncated"] == 0.0
    assert found["importance_effective"] == pytest.approx(1.0)
    assert found["sampler_mismatch"] == pytest.approx(0.4, rel=1e-5)
    assert found["sampler_mismatch_max"] == pytest.approx(0.4, rel=1e-5)


def test_no_weight_is_larger_than_the_cap(tiny_model_dir: Path) -> None:
    plain = _learn(tiny_model_dir, OwnSamplerConfig(), 0.0)
    found = _learn(tiny_model_dir, VllmServerConfig(importance_cap=1.25), 0.4)
    assert found["policy_loss"] == pytest.approx(1.25 * plain["policy_loss"], rel=1e-5)
    assert found["importance_truncated"] == 1.0
    # A sampler that gave the tokens more than the policy does: exp(-0.4) = 0.6703, which no cap touches.
    found = _learn(tiny_model_dir, VllmServerConfig(importance_cap=1.25), -0.4)
    assert found["policy_loss"] == pytest.approx(0.6703200 * plain["policy_loss"], rel=1e-5)
    assert found["importance_truncated"] == 0.0


def test_the_own_samplers_tokens_have_no_weights(tiny_model_dir: Path) -> None:
    plain, found = (_learn(tiny_model_dir, OwnSamplerConfig(), nats) for nats in (0.0, 0.4))
    assert found["policy_loss"] == plain["policy_loss"]
    assert not WEIGHTS & found.keys()


def test_a_foreign_engine_is_held_to_a_wider_tolerance(tiny_model_dir: Path) -> None:
    config = material.ppo_config()
    state = prepare(tiny_model_dir, material.count_letter, config)
    experience = rollout(state.trunk, material.prompts(), config, step=0)
    near, far = _with_mismatch(experience, 0.02), _with_mismatch(experience, 0.3)
    check_first_rollout(state.trunk, near, foreign=True)
    with pytest.raises(SelfTestError, match=r"differ by 0\.02 nats a token, expected at most 0\.001"):
        check_first_rollout(state.trunk, near)
    with pytest.raises(SelfTestError, match=r"differ by 0\.3 nats .* 0\.05; .*same base model.*--logprobs-mode"):
        check_first_rollout(state.trunk, far, foreign=True)


@pytest.mark.parametrize("tune", [LoraConfig(), FullConfig()], ids=["lora", "full"])
def test_every_step_draws_from_the_policy_that_the_last_update_left(
    tiny_model_dir: Path, tmp_path: Path, tune: LoraConfig | FullConfig
) -> None:
    stand_in = EngineOnServer(tiny_model_dir)
    with serving(stand_in) as url:
        config = material.ppo_config(steps=3, tune=tune, sampler=VllmServerConfig(url=url, folder=str(tmp_path / "w")))
        ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path / "run", config)
    rows = material.rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert abs(rows[2]["kl_sequence"]) > 0.01  # the policy has moved, and the engine with it
    for row in rows:
        assert row["sampler_mismatch_max"] < 1e-4
        assert math.isclose(row["importance_weight_mean"], 1.0, abs_tol=1e-4)
        assert row["importance_effective"] > 0.9999
    assert not list((tmp_path / "w").iterdir())  # nothing is left when the run is over
    asked = stand_in.paths()
    assert asked.count("/v1/completions") == 3 * 8
    assert asked.count("/v1/load_lora_adapter" if isinstance(tune, LoraConfig) else "/collective_rpc") == 3


def test_an_engine_with_another_model_is_caught_before_the_first_update(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = EngineOnServer(tiny_model_dir)
    honest = stand_in.complete
    monkeypatch.setattr(stand_in, "complete", lambda body: honest(body | {"temperature": 3.0}))
    with serving(stand_in) as url:
        config = material.ppo_config(sampler=VllmServerConfig(url=url))
        with pytest.raises(SelfTestError, match="is it the same base model"):
            ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, config)


def test_settings_name_the_sampler() -> None:
    found = build(PpoConfig, {"sampler": {"kind": "vllm", "kv_cache_gib": 0.5}}, where="test").sampler
    assert found == VllmConfig(kv_cache_gib=0.5)
    with pytest.raises(ConfigError, match=r"sampler\.importance_cap.*greater than or equal to 1"):
        build(PpoConfig, {"sampler": {"kind": "vllm", "importance_cap": 0.5}}, where="test")
    with pytest.raises(ConfigError, match=r"'sampler\.url' belongs to another `kind`"):
        build(PpoConfig, {"sampler": {"kind": "vllm", "url": "http://localhost"}}, where="test")

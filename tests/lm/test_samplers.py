"""One protocol for all samplers; what a server answers is read token for token, or refused."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.config import FullConfig, LoraConfig, OwnSamplerConfig, VllmConfig, VllmServerConfig
from harken.errors import SamplerError, UsageError
from harken.lm.foreign import checked_sampled
from harken.lm.load import load_model
from harken.lm.sample import Sampled, sample
from harken.lm.samplers import open_sampler
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings
from tests.lm.stand_in import EngineOnServer, serving
from tests.policy import material
from tests.tiny import END_ID

PROMPTS = [[72, 101, 108], [65], [84, 101, 108, 108]]
SETTINGS = SamplingSettings(temperature=0.7, max_new_tokens=6)
STOPS = frozenset({END_ID})


@pytest.fixture
def engine(tiny_model_dir: Path) -> Iterator[tuple[EngineOnServer, str]]:
    stand_in = EngineOnServer(tiny_model_dir)
    with serving(stand_in) as url:
        yield stand_in, url


def _trunk(folder: Path, tune: LoraConfig | FullConfig | None = None) -> Trunk:
    trunk = Trunk(load_model(folder, compute=material.COMPUTE, chat=material.RAW))
    if tune is not None:
        trunk.add_role("policy", tune, seed=0)
        _move(trunk)
    return trunk


@torch.no_grad()
def _move(trunk: Trunk) -> None:
    """Stands for an update of the policy."""
    for parameter in trunk.parameters("policy").values():
        parameter.add_(0.05 * torch.randn(parameter.shape))


def _open(trunk: Trunk, config: Any) -> Any:
    return open_sampler(trunk, config, batch_size=4, max_length=64)


def _assert_same(found: list[Sampled], expected: list[Sampled]) -> None:
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.finish_reason for one in found] == [one.finish_reason for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        # Tokens drawn in another batch differ by the rounding of fp32.
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_the_own_sampler_draws_what_sample_draws(tiny_model_dir: Path) -> None:
    trunk = _trunk(tiny_model_dir, LoraConfig())
    found = _open(trunk, OwnSamplerConfig())("policy", PROMPTS, SETTINGS, seeds=range(6), n=2)
    _assert_same(found, sample(trunk, "policy", PROMPTS, SETTINGS, seeds=range(6), n=2, batch_size=4))


@pytest.mark.parametrize("tune", [LoraConfig(), FullConfig()], ids=["lora", "full"])
def test_a_server_draws_from_the_policy_as_it_is_now(
    engine: tuple[EngineOnServer, str], tiny_model_dir: Path, tune: LoraConfig | FullConfig
) -> None:
    stand_in, url = engine
    trunk = _trunk(tiny_model_dir, tune)
    draw = _open(trunk, VllmServerConfig(url=url))
    for update in range(3):
        expected = sample(trunk, "policy", PROMPTS, SETTINGS, seeds=range(6), n=2)
        _assert_same(draw("policy", PROMPTS, SETTINGS, seeds=range(6), n=2), expected)
        _assert_same(
            draw(None, PROMPTS, SETTINGS, seeds=range(3)), sample(trunk, None, PROMPTS, SETTINGS, seeds=range(3))
        )
        assert len(stand_in.adapters) == (1 if isinstance(tune, LoraConfig) else 0), f"after update {update}"
        _move(trunk)
    loads = [body["lora_name"] for path, body in stand_in.requests if path == "/v1/load_lora_adapter"]
    assert len(set(loads)) == len(loads) == (3 if isinstance(tune, LoraConfig) else 0)
    # New weights: policy, base, policy, ...; each time the cache of the old ones is dropped.
    reloads = 0 if isinstance(tune, LoraConfig) else 6
    assert stand_in.paths().count("/collective_rpc") == stand_in.paths().count("/reset_prefix_cache") == reloads


def test_a_request_says_all_that_shapes_the_distribution(
    engine: tuple[EngineOnServer, str], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, url = engine
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    draw = _open(_trunk(tiny_model_dir), VllmServerConfig(url=url + "/"))
    draw(None, PROMPTS[:1], SETTINGS, seeds=[7, 8], n=2)
    bodies = [body for path, body in stand_in.requests if path == "/v1/completions"]
    assert sorted(body.pop("seed") for body in bodies) == [7, 8]
    assert bodies[0] == bodies[1]
    assert bodies[0] == {
        "model": "base",
        "prompt": PROMPTS[0],
        "max_tokens": 6,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_tokens": 0,
        "stop_token_ids": [END_ID],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }


def test_the_folder_of_the_weights_goes_away_with_the_sampler(
    engine: tuple[EngineOnServer, str], tiny_model_dir: Path, tmp_path: Path
) -> None:
    _, url = engine
    trunk = _trunk(tiny_model_dir, LoraConfig())
    draw = _open(trunk, VllmServerConfig(url=url, folder=str(tmp_path / "shared")))
    draw("policy", PROMPTS, SETTINGS, seeds=range(3))
    _move(trunk)
    draw("policy", PROMPTS, SETTINGS, seeds=range(3))
    written = [path.name for path in (tmp_path / "shared").glob("*/*")]
    assert written == ["adapter-2"]  # the first is gone with its update
    del draw
    assert not list((tmp_path / "shared").iterdir())


@pytest.mark.parametrize(
    ("refuse", "match"),
    [
        ({"/v1/load_lora_adapter": (404, "Not Found")}, r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"),
        ({"/v1/load_lora_adapter": (400, "rank 16 is too large")}, r"HTTP 400: .*rank 16 is too large"),
        ({"/v1/completions": (500, "out of memory")}, r"/v1/completions: HTTP 500: .*out of memory"),
    ],
)
def test_what_a_server_refuses_is_told(
    engine: tuple[EngineOnServer, str], tiny_model_dir: Path, refuse: dict[str, tuple[int, str]], match: str
) -> None:
    stand_in, url = engine
    draw = _open(_trunk(tiny_model_dir, LoraConfig()), VllmServerConfig(url=url))
    stand_in.refuse = refuse
    with pytest.raises(SamplerError, match=match):
        draw("policy", PROMPTS, SETTINGS, seeds=range(3))


def test_a_server_without_reload_endpoint_is_told_what_to_start_with(
    engine: tuple[EngineOnServer, str], tiny_model_dir: Path
) -> None:
    stand_in, url = engine
    draw = _open(_trunk(tiny_model_dir, FullConfig()), VllmServerConfig(url=url))
    stand_in.refuse = {"/collective_rpc": (404, "Not Found")}
    with pytest.raises(SamplerError, match="start the server with VLLM_SERVER_DEV_MODE=1"):
        draw("policy", PROMPTS, SETTINGS, seeds=range(3))
    stand_in.refuse, stand_in.change = {}, {"success": False}
    with pytest.raises(SamplerError, match="could not drop its prefix cache"):
        draw("policy", PROMPTS, SETTINGS, seeds=range(3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"token_ids": None}, "without token ids"),
        ({"logprobs": None}, "without token ids and log-probabilities"),
        ({"token_ids": [65], "logprobs": {"token_logprobs": [None]}}, "without token ids"),
        ({"finish_reason": "abort"}, "reason 'abort', expected stop or length"),
    ],
)
def test_answers_that_cannot_be_learned_from_are_refused(
    engine: tuple[EngineOnServer, str], tiny_model_dir: Path, change: dict[str, Any], match: str
) -> None:
    stand_in, url = engine
    draw = _open(_trunk(tiny_model_dir), VllmServerConfig(url=url))
    stand_in.change = change
    with pytest.raises(SamplerError, match=match):
        draw(None, PROMPTS, SETTINGS, seeds=range(3))


def test_a_server_that_is_not_there_or_has_another_model_is_told(
    engine: tuple[EngineOnServer, str], tiny_model_dir: Path
) -> None:
    _, url = engine
    trunk = _trunk(tiny_model_dir)
    with pytest.raises(SamplerError, match=r"no model 'mine', it has: base, other; set sampler\.model"):
        _open(trunk, VllmServerConfig(url=url, model="mine"))
    with pytest.raises(SamplerError, match="is `vllm serve` running there"):
        _open(trunk, VllmServerConfig(url="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("token_ids", "logprobs", "reason", "match"),
    [
        ([], [], "length", "0 tokens"),
        ([65, 66], [-1.0], "length", "2 tokens with 1 log-probabilities"),
        ([65], [-1.0], "stop", "reason 'stop', 0 of its 1 tokens"),
        ([65, END_ID], [-1.0, -1.0], "length", "reason 'length', 1 of its 2 tokens"),
        ([END_ID, END_ID], [-1.0, -1.0], "stop", "2 of its 2 tokens"),
        ([65], [-1.0], None, "reason None"),
    ],
)
def test_a_completion_ends_with_a_stop_token_exactly_when_it_stopped(
    token_ids: list[int], logprobs: list[float], reason: object, match: str
) -> None:
    assert checked_sampled([65, END_ID], [-1.0, -2.0], "stop", STOPS).finish_reason == "stop"
    assert checked_sampled([65], [-1.0], "length", STOPS) == Sampled([65], [-1.0], "length")
    with pytest.raises(SamplerError, match=match):
        checked_sampled(token_ids, logprobs, reason, STOPS)


def test_without_vllm_the_message_says_what_to_install(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'harken\[vllm\]'.*docs/vllm\.md.*sampler\.kind = 'own'"):
        _open(_trunk(tiny_model_dir), VllmConfig())

"""vLLM's engine draws what the policy would, tells the log-probabilities it drew with, and follows each update."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harken.config import FullConfig, LoraConfig, VllmConfig, VllmServerConfig
from harken.errors import SamplerError
from harken.lm.batch import Tokens, pad
from harken.lm.forward import completion_logprobs
from harken.lm.load import load_model
from harken.lm.sample import Sampled
from harken.lm.samplers import Sampler, open_sampler
from harken.lm.trunk import Trunk
from harken.policy.ppo import ppo
from harken.records import SamplingSettings
from tests.policy import material
from tests.tiny import BOS_ID, END_ID, PAD_ID, make_tiny_tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed (docs/vllm.md)"),
    pytest.mark.filterwarnings("ignore"),  # vllm's own use of torch warns
]

PROMPTS = [[72, 101, 108], [65], [84, 101, 108, 108]]
SETTINGS = SamplingSettings(temperature=1.5, max_new_tokens=40)
ENGINE = VllmConfig(kv_cache_gib=0.1)
TUNES = pytest.mark.parametrize("tune", [LoraConfig(), FullConfig()], ids=["lora", "full"])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with heads of 32, the smallest that vLLM's kernels for CPUs know."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=request.param,
        bos_token_id=BOS_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def _trunk(folder: Path, tune: LoraConfig | FullConfig) -> Trunk:
    trunk = Trunk(load_model(folder, compute=material.COMPUTE, chat=material.RAW))
    trunk.add_role("policy", tune, seed=0)
    return trunk


@torch.no_grad()
def _move(trunk: Trunk) -> None:
    """Stands for an update of the policy."""
    for parameter in trunk.parameters("policy").values():
        parameter.add_(0.02 * torch.randn(parameter.shape))


@torch.no_grad()
def _mismatch(trunk: Trunk, role: str | None, drawn: list[Sampled], n: int) -> float:
    """Largest |log-probability by the engine - by the scorer| of a drawn token."""
    batch = pad([Tokens(PROMPTS[row // n], one.token_ids) for row, one in enumerate(drawn)], trunk.device)
    found = completion_logprobs(trunk, role, batch, temperature=SETTINGS.temperature).logprobs[batch.completion_mask]
    return float((found - torch.tensor([value for one in drawn for value in one.logprobs])).abs().max())


def _check(trunk: Trunk, draw: Sampler) -> None:
    """Draw before and after updates, from policy and base in turn."""
    before: list[Sampled] = []
    reasons: set[str] = set()
    for update in range(3):
        drawn = draw("policy", PROMPTS, SETTINGS, seeds=range(24), n=8)
        assert _mismatch(trunk, "policy", drawn, 8) < 1e-4
        reasons |= {one.finish_reason for one in drawn}
        for one in drawn:
            assert (one.token_ids[-1] == END_ID) == (one.finish_reason == "stop")
            assert len(one.token_ids) == SETTINGS.max_new_tokens or one.finish_reason == "stop"
        assert len({tuple(one.token_ids) for one in drawn}) == 24, "each completion has its own seed"
        again = draw("policy", PROMPTS[1:], SETTINGS, seeds=range(8, 24), n=8)
        assert [one.token_ids for one in again] == [one.token_ids for one in drawn[8:]]
        assert drawn != before, f"after update {update} the engine drew as before it"
        before = drawn
        base = draw(None, PROMPTS, SETTINGS, seeds=range(3))
        assert _mismatch(trunk, None, base, 1) < 1e-4
        _move(trunk)
    assert reasons == {"stop", "length"}


@TUNES
def test_the_engine_follows_the_policy(model: Path, tune: LoraConfig | FullConfig) -> None:
    trunk = _trunk(model, tune)
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    draw = open_sampler(trunk, ENGINE, batch_size=16, max_length=64)
    _check(trunk, draw)
    assert torch.set_num_threads is set_num_threads  # vllm puts its own there
    assert torch.get_num_threads() == threads
    del draw
    assert not torch.distributed.is_initialized()


def test_drawn_tokens_have_the_frequencies_of_the_distribution(model: Path) -> None:
    trunk = _trunk(model, LoraConfig())
    _move(trunk)
    draw = open_sampler(trunk, ENGINE, batch_size=64, max_length=64)
    count = 2000
    one = SETTINGS.model_copy(update={"max_new_tokens": 1})
    drawn = draw("policy", PROMPTS[:1], one, seeds=range(count), n=count)
    tokens, times = torch.tensor([found.token_ids[0] for found in drawn]).unique(return_counts=True)
    assert len(tokens) > 30  # or there would be little to compare
    for token, seen in zip(tokens.tolist(), times.tolist(), strict=True):
        chance = next(found.logprobs[0] for found in drawn if found.token_ids[0] == token)
        expected = count * float(torch.tensor(chance).exp())
        # Counts are close to Poisson; a false alarm at six deviations and six has a chance below 1e-8 a token.
        assert abs(seen - expected) < 6 * expected**0.5 + 6


@TUNES
def test_ppo_learns_from_what_vllm_draws(model: Path, tmp_path: Path, tune: LoraConfig | FullConfig) -> None:
    config = material.ppo_config(steps=3, tune=tune, sampler=ENGINE, max_length=64)
    ppo(model, material.prompts(), material.count_letter, tmp_path, config)
    rows = material.rows(tmp_path / "metrics.jsonl")
    assert len(rows) == 3
    assert abs(rows[2]["kl_sequence"]) > 1e-3
    for row in rows:
        assert row["sampler_mismatch_max"] < 1e-4
        assert abs(row["importance_weight_mean"] - 1.0) < 1e-4


def test_a_prompt_that_is_too_long_is_told(model: Path) -> None:
    draw = open_sampler(_trunk(model, LoraConfig()), ENGINE, batch_size=4, max_length=8)
    with pytest.raises(SamplerError, match="vLLM could not draw"):
        draw("policy", [list(range(9))], SETTINGS, seeds=[0])


def test_an_engine_without_room_says_why_it_does_not_start(model: Path) -> None:
    with pytest.raises(SamplerError, match=r"vLLM did not start: .*sampler\.kv_cache_gib"):
        open_sampler(_trunk(model, LoraConfig()), VllmConfig(kv_cache_gib=1e-5), batch_size=4, max_length=64)


@contextlib.contextmanager
def _server(folder: Path) -> Generator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--dtype", "float32", "--enable-lora", "--logprobs-mode", "processed_logprobs", "--enforce-eager"]
    settings = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(command, env=os.environ | settings)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            assert server.poll() is None, "the server ended"
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
@TUNES
def test_a_real_server_follows_the_policy(model: Path, tune: LoraConfig | FullConfig) -> None:
    trunk = _trunk(model, tune)
    with _server(model) as url:
        options: Any = {"batch_size": 16, "max_length": 64}
        _check(trunk, open_sampler(trunk, VllmServerConfig(url=url), **options))

"""Models from disk: what loads, what is refused in one clear line, and what is written for others to read."""

import json
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harken import assets
from harken.config import ChatConfig, ComputeConfig, FullConfig, LoraConfig, OptimizerConfig
from harken.errors import DataError, StorageError, UsageError
from harken.lm.batch import pad
from harken.lm.checkpoint import (
    load_tensors,
    load_training,
    save_adapter,
    save_model,
    save_tensors,
    save_training,
)
from harken.lm.forward import completion_logprobs
from harken.lm.load import load_model, pick_device, pick_dtype
from harken.lm.optim import Optimizer
from harken.lm.sample import sample
from harken.lm.trunk import Trunk
from harken.records import Message, Prompt, SamplingSettings
from tests.lm.archs import make_trunk, random_tokens, shake
from tests.tiny import END_ID, make_tiny_model

FP32 = ComputeConfig(dtype="float32", device="cpu")
LORA = LoraConfig(rank=3, alpha=5.0)


def _trunk(folder: Path | str, *, compute: ComputeConfig = FP32) -> Trunk:
    return Trunk(load_model(folder, compute=compute))


def _policy(folder: Path, tune: LoraConfig | FullConfig = LORA) -> Trunk:
    trunk = _trunk(folder)
    trunk.add_role("policy", tune, seed=0)
    shake(trunk, "policy", seed=1, size=0.1 if isinstance(tune, LoraConfig) else 0.02)
    return trunk


@torch.no_grad()
def _logprobs(trunk: Trunk, role: str | None) -> torch.Tensor:
    return completion_logprobs(trunk, role, pad(random_tokens(3, [(5, 9), (2, 4)]))).logprobs


def _copy(source: Path, target: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


def _set(name: str, **values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**found, **values}))

    return change


def test_a_folder_loads_frozen_in_the_asked_precision(tiny_model_dir: Path) -> None:
    loaded = load_model(tiny_model_dir, compute=FP32.model_copy(update={"dtype": "bfloat16"}))
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.context_length == 256
    assert loaded.source == str(tiny_model_dir)
    trunk = Trunk(loaded)
    assert not any(value.requires_grad for value in trunk.model.parameters())


def test_what_was_assumed_about_the_template_is_told_once(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", chat_template=False)
    told: list[str] = []
    load_model(folder, compute=FP32, notify=told.append)
    assert len(told) == 1
    assert "no chat template" in told[0]
    load_model(folder, compute=FP32, chat=ChatConfig(template="raw"), notify=told.append)
    assert len(told) == 1


@pytest.mark.parametrize(("stops", "expected"), [([END_ID, 5, 9], {END_ID, 5, 9}), (7, {END_ID, 7})])
def test_stop_tokens_come_from_the_generation_config(
    tiny_model_dir: Path, tmp_path: Path, stops: object, expected: set[int]
) -> None:
    folder = _copy(tiny_model_dir, tmp_path / "m", _set("generation_config.json", eos_token_id=stops))
    assert load_model(folder, compute=FP32).chat.stop_ids == expected


def test_a_model_with_sampling_settings_that_transformers_finds_odd_still_saves(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = _copy(
        tiny_model_dir, tmp_path / "m", _set("generation_config.json", temperature=0.6, eos_token_id=[END_ID, 5])
    )
    trunk = _policy(folder)
    save_model(tmp_path / "out", trunk, "policy")
    again = _trunk(tmp_path / "out")
    torch.testing.assert_close(_logprobs(again, None), _logprobs(trunk, "policy"), rtol=1e-4, atol=1e-4)
    assert again.chat.stop_ids == trunk.chat.stop_ids == {END_ID, 5}


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut weights": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
        "could not be loaded",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no file named model.safetensors"),
    "bad config": (lambda d: (d / "config.json").write_text("{"), "not a valid JSON file"),
    "no type": (lambda d: (d / "config.json").write_text("{}"), "model_type"),
    "no tokenizer": (lambda d: [path.unlink() for path in d.glob("tok*")], "tokenizer"),
    "bad tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "could not be loaded"),
    "other shape": (_set("config.json", intermediate_size=72), "6 weights.*another shape.*mlp.down_proj"),
    "more layers": (_set("config.json", num_hidden_layers=3), "9 weights.*lack.*layers.2"),
    "adapter without base": (_set("adapter_config.json", peft_type="LORA"), "base_model_name_or_path"),
    "empty": (lambda d: [path.unlink() for path in d.iterdir()], "no config.json or adapter_config.json in it"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_line_that_names_it(tiny_model_dir: Path, tmp_path: Path, case: str) -> None:
    change, expected = BROKEN[case]
    folder = _copy(tiny_model_dir, tmp_path / "m", change)
    with pytest.raises(DataError, match=expected) as caught:
        load_model(folder, compute=FP32)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "what is this?", "./gone", "a/b/c", "gone.gguf"])
def test_a_name_that_leads_nowhere_is_refused_quickly(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_model(name, compute=FP32)
    assert time.monotonic() - started < 10
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_network_a_hub_name_is_looked_up_in_the_cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    asked: list[dict[str, Any]] = []

    def refuse(name: str, **options: Any) -> None:
        asked.append(options)
        raise OSError("not in the cache")

    monkeypatch.setattr("harken.lm.load.socket.getaddrinfo", unknown)
    monkeypatch.setattr("harken.lm.load.urllib.request.getproxies", dict)
    monkeypatch.setattr("harken.lm.load.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(DataError, match="'nobody/nothing' could not be loaded: not in the cache; give a folder"):
        load_model("nobody/nothing", compute=FP32)
    assert asked[0]["local_files_only"] is True


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    for content in (b"hello", b"GGUF" + bytes(10)):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(DataError, match="could not be loaded"):
            load_model(tmp_path / "m.gguf", compute=FP32)


def test_an_adapter_folder_loads_as_the_role_it_was_saved_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    trunk = _policy(tiny_model_dir)
    save_adapter(tmp_path, trunk, "policy", str(tiny_model_dir))
    torch.testing.assert_close(_logprobs(_trunk(tmp_path), None), _logprobs(trunk, "policy"), rtol=1e-4, atol=1e-4)
    assert not any(name.startswith("head.") for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_an_adapter_without_tokenizer_takes_the_bases(tiny_model_dir: Path, tmp_path: Path) -> None:
    trunk = _policy(tiny_model_dir)
    save_adapter(tmp_path, trunk, "policy", str(tiny_model_dir))
    for path in [*tmp_path.glob("tok*"), *tmp_path.glob("*.jinja")]:
        path.unlink()
    assert load_model(tmp_path, compute=FP32).chat.tokenizer.chat_template == trunk.chat.tokenizer.chat_template


def test_an_adapter_whose_base_is_gone_is_refused_by_the_bases_name(tiny_model_dir: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path, _policy(tiny_model_dir), "policy", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone: no such folder"):
        load_model(tmp_path, compute=FP32)


@pytest.mark.parametrize("tune", [LORA, FullConfig()])
def test_a_saved_model_is_the_role_and_keeps_its_chat(
    tiny_model_dir: Path, tmp_path: Path, tune: LoraConfig | FullConfig
) -> None:
    trunk = _policy(tiny_model_dir, tune)
    save_model(tmp_path, trunk, "policy")
    again = _trunk(tmp_path)
    torch.testing.assert_close(_logprobs(again, None), _logprobs(trunk, "policy"), rtol=1e-4, atol=1e-5)
    prompt = Prompt(id="p", messages=(Message(role="user", content=" Grüße 🙂"),))
    assert again.chat.encode_prompt(prompt) == trunk.chat.encode_prompt(prompt)
    assert again.chat.stop_ids == trunk.chat.stop_ids


@pytest.mark.parametrize("tune", [LORA, FullConfig()])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_checkpoint_brings_everything_back_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path, tune: LoraConfig | FullConfig, dtype: str
) -> None:
    compute = FP32.model_copy(update={"dtype": dtype})

    def start() -> tuple[Trunk, Optimizer]:
        trunk = _trunk(tiny_model_dir, compute=compute)
        trunk.add_role("critic", tune, seed=0, head=True)
        return trunk, Optimizer(trunk.parameters("critic"), OptimizerConfig(learning_rate=0.01), 10)

    def step(trunk: Trunk, optimizer: Optimizer) -> None:
        states = trunk.hidden("critic", pad(random_tokens(optimizer.steps, [(3, 5)])))
        trunk.head("critic", states[0]).sum().backward()
        optimizer.step()

    trunk, optimizer = start()
    step(trunk, optimizer)
    save_training(tmp_path, trunk, {"critic": optimizer}, {"kl_coef": 0.1, "order": [3, 1]})
    other, second = start()
    assert load_training(tmp_path, other, {"critic": second}) == {"kl_coef": 0.1, "order": [3, 1]}
    for pair in ((trunk, optimizer), (other, second)):
        step(*pair)
    ours, theirs = other.state("critic"), trunk.state("critic")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_damaged_tensor_file_is_refused_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(40.0).reshape(5, 8).T})
    assert torch.equal(load_tensors(path)["a"], torch.arange(40.0).reshape(5, 8).T)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"\0" * 8):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.safetensors: cannot be read"):
            load_tensors(path)
    with pytest.raises(DataError, match="gone"):
        load_tensors(tmp_path / "gone")


def test_tensors_that_cannot_be_written_are_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be written"):
        save_tensors(tmp_path / "gone" / "x.safetensors", {"a": torch.ones(1)})


def test_a_file_that_the_system_cuts_short_is_a_storage_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk: both reach us through safetensors' own error.
    trunk = _policy(tiny_model_dir)
    before, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large; mend this and run the same command again"):
            save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1 << 15)})
        with pytest.raises(StorageError, match="File too large"):
            save_model(tmp_path / "m", trunk, "policy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, action)


def test_an_adapter_opens_in_peft_on_a_model_loaded_there(tiny_model_dir: Path, tmp_path: Path) -> None:
    trunk = _policy(tiny_model_dir)
    save_adapter(tmp_path, trunk, "policy", str(tiny_model_dir))
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    theirs: Any = PeftModel.from_pretrained(plain, tmp_path)
    batch = pad(random_tokens(3, [(5, 9)]))
    with torch.no_grad():
        ours = trunk.logits_fn("policy")(trunk.hidden("policy", batch))
        torch.testing.assert_close(ours, theirs(input_ids=batch.ids).logits, rtol=1e-4, atol=1e-5)


def test_devices_and_precisions_are_checked() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("cuda:77", "abacus"):
        with pytest.raises(UsageError, match=f"compute.device={name}.*use auto or cpu"):
            pick_device(name)
    cpu = torch.device("cpu")
    assert pick_dtype("float32", cpu) == torch.float32
    assert pick_dtype("bfloat16", cpu) == torch.bfloat16
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


def test_a_trunk_knows_its_sizes() -> None:
    assert {name: make_trunk(name).hidden_size for name in ("llama", "gpt2")} == {"llama": 32, "gpt2": 32}
    assert make_trunk("gpt2").context_length == 128


@pytest.mark.smollm2
def test_smollm2_loads_generates_and_its_adapter_opens_by_name(tmp_path: Path) -> None:
    compute = ComputeConfig(dtype="bfloat16", device="cpu")
    load_model("smollm2", compute=compute)  # converts once
    started = time.monotonic()
    trunk = _trunk("smollm2", compute=compute)
    assert time.monotonic() - started < 5
    assert (assets.fetch("smollm2").with_suffix(".converted") / "model.safetensors").is_file()
    prompt = Prompt(id="p", messages=(Message(role="user", content="What is the capital of France?"),))
    greedy = SamplingSettings(temperature=1e-3, max_new_tokens=8)
    item = sample(trunk, None, [trunk.chat.encode_prompt(prompt)], greedy, seeds=[0])[0]
    assert 1 <= len(item.token_ids) <= 8
    assert "Paris" in trunk.chat.decode_completion(item.token_ids)
    trunk.add_role("policy", LoraConfig(rank=2), seed=0)
    save_adapter(tmp_path, trunk, "policy", "smollm2")
    again = load_model(tmp_path, compute=compute)
    assert again.model.dtype == torch.bfloat16
    assert again.chat.stop_ids == trunk.chat.stop_ids

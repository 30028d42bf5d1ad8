"""`harken doctor`: what works on this machine, and the numeric self-tests on a tiny random model."""

import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harken.cli_common import JsonOption, show, show_json, table

if TYPE_CHECKING:
    from harken.lm.trunk import Trunk

PACKAGES = ("torch", "transformers", "peft", "pydantic", "numpy", "sqlalchemy", "matplotlib", "vaderSentiment")
TOLERANCE = 1e-4
"""Largest difference of two fp32 computations of one number."""

Check = Callable[[], str]
"""Returns a few words on what was found, or raises a `HarkenError`."""


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine, and that Harken computes right on it.

    Shows versions, device and cache, and runs numeric self-tests on a tiny random model. Exits with 1 when a check
    fails.
    """
    facts = machine_facts()
    checks = run_checks()
    if as_json:
        show_json({"facts": facts, "checks": checks})
    else:
        show(table([[name, value] for name, value in facts.items()]))
        for check in checks:
            show(f"{'ok    ' if check['ok'] else 'FAILED'}  {check['name']}: {check['found']}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def machine_facts() -> dict[str, str]:
    """Return versions, device, the type that `auto` takes, and what the cache holds."""
    import torch

    from harken import assets
    from harken.artifacts import HARKEN_VERSION
    from harken.lm.load import pick_device, pick_dtype

    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    cache = assets.cache_folder()
    held = [asset for asset in assets.asset_names() if any((cache / "assets").glob(f"{asset}-*"))]
    nearest = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    return {
        "harken": HARKEN_VERSION,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": f"{device} ({name})",
        "dtype": str(pick_dtype("auto", device)).removeprefix("torch."),
        "cache": str(cache),
        "cached": ", ".join(held) or "nothing yet",
        "free disk": f"{shutil.disk_usage(nearest).free / 2**30:.0f} GiB",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run_checks() -> list[dict[str, Any]]:
    """Run every check and return name, whether it passed, and what was found."""
    from harken.errors import HarkenError
    from harken.lm.load import load_model
    from harken.lm.trunk import Trunk

    results: list[dict[str, Any]] = []

    def run(name: str, check: Check) -> None:
        try:
            results.append({"name": name, "ok": True, "found": check()})
        except HarkenError as error:
            results.append({"name": name, "ok": False, "found": str(error)})

    run("the cache folder can be written", check_cache)
    run("advantages add up to the rewards to come", check_gae)
    run("KL estimators have the exact KL as their mean", check_kl)
    with tempfile.TemporaryDirectory(prefix="harken-doctor-") as temporary:
        try:
            trunk = Trunk(load_model(write_tiny_model(Path(temporary)), compute=_fp32()))
        except HarkenError as error:
            results.append({"name": "a model loads from a folder", "ok": False, "found": str(error)})
        else:
            run("chunked log-probabilities equal the model's own", lambda: check_logprobs(trunk))
            run("the sampler and the scorer agree", lambda: check_sampler(trunk))
    return results


def _fp32() -> Any:
    from harken.config import ComputeConfig

    return ComputeConfig(dtype="float32")


def _expect(difference: float, what: str) -> str:
    from harken.errors import SelfTestError

    if not difference <= TOLERANCE:
        raise SelfTestError(f"{what} differ by {difference:.2g}, expected at most {TOLERANCE:g}")
    return f"difference {difference:.1g}"


def check_cache() -> str:
    """Write a file into the cache folder and remove it."""
    from harken.artifacts import write_text
    from harken.assets import cache_folder

    probe = cache_folder() / ".doctor"
    write_text(probe, "")
    probe.unlink()
    return str(cache_folder())


def check_gae() -> str:
    """With gamma = lambda = 1 the return of each token is the sum of the rewards from it on, whatever the values."""
    import torch

    from harken.core.advantages import gae

    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 7, generator=generator)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[:, 0] = False  # a prompt token, which earns nothing
    rewards[:, 0] = 0.0
    returns = gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)[1]
    expected = rewards.flip(1).cumsum(1).flip(1)
    return _expect(float((returns - expected)[mask].abs().max()), "returns and summed rewards")


def check_kl() -> str:
    """Averaged over the policy's own distribution, k1 and k3 both give the sum of p log(p / q)."""
    import torch

    from harken.core.kl import kl_k1, kl_k3

    generator = torch.Generator().manual_seed(0)
    # Small differences: k3 of a single token has a bound, which would bias the mean.
    policy, reference = (0.3 * torch.randn(2, 16, generator=generator, dtype=torch.float64)).log_softmax(-1)
    chances = policy.exp()
    exact = float((chances * (policy - reference)).sum())
    means = [float((chances * estimate(policy, reference)).sum()) for estimate in (kl_k1, kl_k3)]
    return _expect(max(abs(mean - exact) for mean in means), "estimated and exact KL")


def check_logprobs(trunk: "Trunk") -> str:
    """The self-test that every run starts with."""
    from harken.policy.selftest import check_output_layer

    check_output_layer(trunk)
    return f"{str(trunk.dtype).removeprefix('torch.')} on {trunk.device}"


def check_sampler(trunk: "Trunk") -> str:
    """Log-probabilities of sampled tokens equal those of the training forward pass, with unequal prompts in a batch."""
    import torch

    from harken.lm.batch import Tokens, pad
    from harken.lm.forward import completion_logprobs
    from harken.lm.sample import sample
    from harken.records import SamplingSettings

    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    drawn = sample(trunk, None, prompts, SamplingSettings(temperature=0.7, max_new_tokens=12), seeds=[0, 1])
    sequences = [Tokens(prompt, item.token_ids) for prompt, item in zip(prompts, drawn, strict=True)]
    batch = pad(sequences, trunk.device)
    with torch.no_grad():
        scored = completion_logprobs(trunk, None, batch, temperature=0.7).logprobs[batch.completion_mask]
    sampled = torch.tensor([value for item in drawn for value in item.logprobs])
    return _expect(float((scored.cpu() - sampled).abs().max()), "the log-probabilities")


def write_tiny_model(folder: Path) -> Path:
    """Write a random llama of two layers with a byte-level tokenizer, file by file, and return its folder."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    width, inner, kv_width, end = 32, 64, 16, len(alphabet)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": end + 1,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (end + 1, width), "model.norm": (width,)}
    for layer in ("model.layers.0", "model.layers.1"):
        for name, rows in (("q", width), ("k", kv_width), ("v", kv_width), ("o", width)):
            shapes[f"{layer}.self_attn.{name}_proj"] = (rows, width)
        shapes |= {f"{layer}.mlp.gate_proj": (inner, width), f"{layer}.mlp.up_proj": (inner, width)}
        shapes |= {f"{layer}.mlp.down_proj": (width, inner)}
        shapes |= {f"{layer}.input_layernorm": (width,), f"{layer}.post_attention_layernorm": (width,)}
    generator = torch.Generator().manual_seed(0)
    # Wider than usual, so that a wrong position, mask or cache changes the numbers.
    weights = {f"{name}.weight": 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

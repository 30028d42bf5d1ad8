"""Models for elsewhere: a plain folder, adapters merged, that is read back and compared before it is given out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harken.artifacts import read_manifest
from harken.config import ChatConfig, ComputeConfig, FullConfig, LoraConfig, Tune
from harken.errors import SelfTestError, UsageError
from harken.lm.checkpoint import save_adapter, save_model, save_tensors
from harken.lm.export import check_export, export_model, export_role
from harken.lm.load import load_model
from harken.lm.q_heads import GUIDE_FILE, HEADS_FILE, QHeads, frozen_copy, read_guide, save_guide, vocabulary
from harken.lm.trunk import Trunk
from harken.policy.ilql import ilql
from tests.cli.calling import call
from tests.lm.archs import plain_logits, shake
from tests.policy import material
from tests.tiny import END_ID

TUNES = [LoraConfig(rank=3, alpha=5.0), FullConfig()]


def _policy(folder: Path, tune: Tune = TUNES[0], dtype: Any = "float32", stop: tuple[str, ...] = ()) -> Trunk:
    compute = ComputeConfig(dtype=dtype, device="cpu")
    trunk = Trunk(load_model(folder, compute=compute, chat=ChatConfig(stop=stop)))
    trunk.add_role("policy", tune, seed=0)
    shake(trunk, "policy", seed=1, size=0.1 if isinstance(tune, LoraConfig) else 0.02)
    return trunk


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tune", TUNES, ids=lambda tune: tune.kind)
def test_an_exported_role_is_the_role_for_transformers_too(
    tune: Tune, dtype: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    trunk = _policy(tiny_model_dir, tune, dtype)
    export_role(tmp_path, trunk, "policy")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = [3, 40, 99, 7, 200]
    with torch.no_grad():
        found, wanted = plain(torch.tensor([ids])).logits[0], plain_logits(trunk.network("policy"), ids).float()
    # bf16: weights are rounded once more where adapters are merged; logits are of size 1 to 10.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 if dtype == "float32" else 0.3)


def _change_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _forget_adapters(folder: Path) -> None:
    save_file(load_file(folder / "plain.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})


def _change(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(found | values))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_change_weight, r"model.layers.1.mlp.up_proj.weight reads back otherwise"),
        (_forget_adapters, r"model.layers.0.mlp.down_proj.weight reads back otherwise"),
        (_change("generation_config.json", eos_token_id=[END_ID]), r"does not stop at the tokens \[\d+\] any more"),
        (_change("config.json", rms_norm_eps=0.5), r"log-probabilities that differ by .* nats"),
    ],
)
def test_a_folder_that_is_not_what_was_in_memory_is_refused(
    spoil: Callable[[Path], None], message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    trunk = _policy(tiny_model_dir, stop=("x",))
    save_model(tmp_path, trunk, "policy")
    save_tensors(tmp_path / "plain.safetensors", load_file(tiny_model_dir / "model.safetensors"))
    check_export(tmp_path, trunk, "policy")
    spoil(tmp_path)
    with pytest.raises(SelfTestError, match=message):
        check_export(tmp_path, trunk, "policy")


def test_other_programs_stop_where_harken_stops(tiny_model_dir: Path, tmp_path: Path) -> None:
    trunk = _policy(tiny_model_dir, stop=("x",))
    export_role(tmp_path, trunk, "policy")
    known = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert known == sorted({END_ID, trunk.chat.tokenizer.convert_tokens_to_ids("x")})
    assert Trunk(load_model(tmp_path)).chat.stop_ids == trunk.chat.stop_ids


def test_the_command_merges_an_adapter_into_its_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    trunk = _policy(tiny_model_dir)
    export_role(tmp_path / "direct", trunk, "policy")
    save_adapter(tmp_path / "adapter", trunk, "policy", str(tiny_model_dir))
    out = tmp_path / "merged"
    ended = call("export", "--model", tmp_path / "adapter", "--out", out, "--dtype", "float32")
    assert (ended.code, ended.out.strip()) == (0, str(out))
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "direct", out))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.parents.keys() == {"model"}
    # Again over itself; half the size in bf16.
    assert call("export", "--model", tmp_path / "adapter", "--out", out).code == 0
    assert {str(value.dtype) for value in load_file(out / "model.safetensors").values()} == {"torch.bfloat16"}
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_with_something_else_in_it_is_left_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(UsageError, match="holds something that is no model"):
        export_model(tiny_model_dir, tmp_path)
    with pytest.raises(UsageError, match="is the folder of the model itself"):
        export_model(tiny_model_dir, tiny_model_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_q_heads_go_along_and_may_be_narrow(tiny_model_dir: Path, tmp_path: Path) -> None:
    # Two heads of a hidden layer of 8: 2 x 4 bytes x (width + vocabulary) x 8 and their biases.
    folder = ilql(tiny_model_dir, material.scored(), tmp_path / "run", material.ilql_config(head_width=8))
    out = export_model(folder, tmp_path / "out", dtype="float32")
    assert (out / HEADS_FILE).read_bytes() == (folder / HEADS_FILE).read_bytes()
    assert (out / GUIDE_FILE).read_bytes() == (folder / GUIDE_FILE).read_bytes()
    trunk = Trunk(load_model(out, compute=material.COMPUTE, chat=material.RAW))
    assert read_guide(trunk, out, None) == "guided"
    size = vocabulary(trunk)
    expected = 2 * 4 * ((trunk.hidden_size + 1) * 8 + (8 + 1) * size)
    tensors = load_file(out / HEADS_FILE)
    assert sum(value.numel() * 4 for value in tensors.values()) == expected
    # As wide as trlX's where nothing is said.
    usual = QHeads(trunk.hidden_size, size, seed=0)
    assert usual.first.inner.out_features == 2 * trunk.hidden_size
    save_guide(out, frozen_copy(usual), 1.0)
    assert read_guide(trunk, out, None) == "guided"

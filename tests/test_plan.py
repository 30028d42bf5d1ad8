"""What `harken plan` predicts, against published sizes, what autograd really keeps, and what torch really computes."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harken.config import FullConfig, LoraConfig, OptimizerConfig
from harken.errors import DataError, UsageError
from harken.lm import llama
from harken.lm.attention import SHORT
from harken.lm.batch import pad
from harken.lm.forward import completion_logprobs
from harken.lm.optim import Optimizer
from harken.lm.speed import model_shape
from harken.plan import (
    Device,
    Job,
    joined_bytes,
    kept_for_backward,
    peak_bytes,
    plan,
    resident_bytes,
    step_bytes,
    working_bytes,
)
from harken.shapes import SIZES, ModelShape, forward_flops, shape_from_config, training_flops
from tests.lm.archs import make_trunk, random_tokens

TINY = Job(trained_roles=1, rank=4, weight_bytes=4, batch=4, prompt_tokens=5, new_tokens=7)
GPU = Device(memory=80e9, matrix_rate=990e12, bandwidth=3350e9)


def test_known_sizes_have_the_published_numbers_of_parameters() -> None:
    # As their model cards and checkpoints say; Qwen's biases of queries, keys and values (27,648) are left out.
    published = {
        "smollm2": 134_515_008,
        "0.5B": 494_032_768 - 24 * (896 + 2 * 128),
        "1B": 1_235_814_400,
        "3B": 3_212_749_824,
        "7B": 6_738_415_616,
        "8B": 8_030_261_248,
        "13B": 13_015_864_320,
        "70B": 70_553_706_496,
    }
    assert {name: shape.parameters for name, shape in SIZES.items()} == published


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_a_config_gives_the_matrices_that_the_model_has(name: str) -> None:
    trunk = make_trunk(name)
    shape = model_shape(trunk)
    output = trunk.model.get_output_embeddings()
    modules: list[Any] = [module for module in trunk.model.modules() if module is not output]
    linear = sum(module.weight.numel() for module in modules if type(module).__name__ in ("Linear", "Conv1D"))
    assert shape.layer_parameters == linear
    trunk.add_role("policy", LoraConfig(rank=4), seed=0)
    # GPT-2 and NeoX hold queries, keys and values in one matrix, with one adapter of its own.
    if name in ("llama", "qwen2"):
        own = sum(value.numel() for value in trunk.parameters("policy").values())
        assert shape.adapter_parameters(4) == own
    assert shape.is_tied == (name in ("llama", "gpt2"))


def test_a_config_without_a_size_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"x/config.json: no num_hidden_layers in the config"):
        shape_from_config({"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9}, "x/config.json")


@pytest.mark.parametrize(("dtype", "short"), [(torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, SHORT)])
@pytest.mark.parametrize("tune", [LoraConfig(rank=4), FullConfig()])
def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves(
    tune: LoraConfig | FullConfig, dtype: torch.dtype, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "SHORT", short)  # longest row that is attended to by plain products
    trunk = make_trunk("llama", dtype)
    trunk.add_role("policy", tune, seed=0)
    shape = model_shape(trunk)
    with torch.no_grad():
        trunk.hidden("policy", pad(random_tokens(0, [(5, 7)])))  # the first pass joins the base's weights
    weights = {value.untyped_storage().data_ptr() for value in trunk.model.parameters()}
    weights |= {value.untyped_storage().data_ptr() for value in trunk.parameters("policy").values()}

    def saved(rows: int) -> int:
        kept: dict[int, int] = {}
        alive: list[torch.Tensor] = []

        def note(value: torch.Tensor) -> torch.Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
                alive.append(value)  # or its address might be given out again
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            states = trunk.hidden("policy", pad(random_tokens(0, [(5, 7)] * rows)))
        assert states.requires_grad
        return sum(kept.values())

    # Per position: what more rows add, so that tensors of a fixed size (angles, adapters) drop out.
    measured = (saved(24) - saved(8)) / (16 * TINY.row_tokens)
    job = dataclasses.replace(TINY, tune=tune.kind, weight_bytes=dtype.itemsize, plain_attention_up_to=short)
    # The last norm, the angles and single numbers are not counted: up to 4 of about 45 vectors, with only two layers.
    assert kept_for_backward(shape, job) == pytest.approx(measured, rel=0.1)  # see above
    # What does not grow with the rows: joined weights or adapters. The first layer's input has no gradient to pass on,
    # so of its adapters' 12 vectors none is kept: 6 % with two layers.
    assert joined_bytes(shape, job) == pytest.approx(saved(8) - measured * 8 * TINY.row_tokens, rel=0.08)  # see above


@pytest.mark.parametrize("tune", [LoraConfig(rank=4), LoraConfig(rank=4, top_layers=1), FullConfig()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resident_memory_is_weights_moments_and_masters(tune: LoraConfig | FullConfig, dtype: torch.dtype) -> None:
    trunk = make_trunk("llama", dtype)
    trunk.add_role("policy", tune, seed=0)
    own = trunk.parameters("policy")
    optimizer = Optimizer(own, OptimizerConfig(), 2)
    for value in own.values():
        value.grad = torch.ones_like(value)
    optimizer.step()
    state = optimizer.state()
    moments = sum(value.nbytes for name, value in state.items() if name.rpartition("::")[2].startswith("exp_avg"))
    masters = sum(value.nbytes for name, value in state.items() if name.endswith("::master"))
    top_layers = tune.top_layers if isinstance(tune, LoraConfig) else None
    job = dataclasses.replace(TINY, tune=tune.kind, top_layers=top_layers, weight_bytes=dtype.itemsize)
    found = resident_bytes(model_shape(trunk), job)
    assert found["AdamW moments"] == moments
    assert found["fp32 masters"] == masters
    assert found["trained weights"] == sum(value.nbytes for value in own.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    trunk = make_trunk(name)
    trunk.add_role("policy", FullConfig(), seed=0)
    batch = pad(random_tokens(0, [(5, 7)] * 3))
    counter = FlopCounterMode(display=False)
    with counter:
        found = completion_logprobs(trunk, "policy", batch)
    counted = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for op, count in counted.items() if op in ("aten.mm", "aten.addmm"))
    # row_tokens = -1 leaves attention out, which torch counts without the causal half, under another name.
    ours = forward_flops(model_shape(trunk), 36, -1, 21)
    assert ours == products
    with FlopCounterMode(display=False) as backward:
        torch.autograd.backward(found.logprobs.sum())
    counted = {str(op): count for op, count in backward.get_flop_counts()["Global"].items()}
    # The output layer's chunk is computed once more; that is not counted as useful.
    again = 2 * model_shape(trunk).embedding_parameters * 21
    assert training_flops(model_shape(trunk), 36, -1, 21, tune="full") - ours == counted["aten.mm"] - again


def test_attention_costs_four_operations_for_each_position_looked_back_on() -> None:
    shape = ModelShape(8, 16, layers=3, heads=2, key_value_heads=1, head_size=4, vocabulary=10)
    # Rows of 3 tokens look back on 1 + 2 + 3 positions, queries are 8 wide: 3 layers x 4 x 8 x 6 x 2 rows.
    assert forward_flops(shape, 6, 3, 0) - forward_flops(shape, 6, -1, 0) == 3 * 4 * 8 * 6 * 2


def test_a_frozen_matrix_needs_no_gradient_of_its_own() -> None:
    shape = SIZES["7B"]
    full = training_flops(shape, 1000, 100, 500, tune="full")
    lora = training_flops(shape, 1000, 100, 500, tune="lora")
    assert full - lora == 2 * 1000 * shape.layer_parameters + 2 * 500 * shape.embedding_parameters
    assert training_flops(shape, 1000, 100, 500, tune="lora", rank=16) > lora


def test_a_decoding_step_reads_weights_and_the_cache() -> None:
    shape = ModelShape(8, 16, layers=3, heads=2, key_value_heads=1, head_size=4, vocabulary=10)
    # Layer: 8x8 twice, 8x4 twice, 8x16 three times = 576; output layer 80; cache 5 rows x 7 x 2 x 4 x 3 layers.
    assert step_bytes(shape, 2, 5, 7) == (3 * 576 + 80) * 2 + 5 * 7 * 2 * 4 * 3 * 2


def test_memory_grows_with_what_is_asked_for_and_not_otherwise() -> None:
    shape, job = SIZES["7B"], Job()
    bigger = {
        "sampling": {"sampling_rows": 32},
        "scoring": {"scoring_tokens": 2048},
        "training": {"microbatch_tokens": 1024},
    }
    for phase in ("sampling", "scoring", "training"):
        smaller = dataclasses.replace(job, **bigger[phase])
        assert peak_bytes(shape, smaller, phase) < peak_bytes(shape, job, phase)
        for other in set(bigger) - {phase}:
            assert peak_bytes(shape, dataclasses.replace(job, **bigger[other]), phase) == peak_bytes(shape, job, phase)
    more_rows = dataclasses.replace(job, batch=640)
    assert peak_bytes(shape, more_rows, "training") == peak_bytes(shape, job, "training")


def test_one_base_with_adapters_takes_a_tenth_of_four_models_with_adamw() -> None:
    # Section 7 of the design: about 16 GB where separate models take about 250.
    lora, full = (plan(SIZES["7B"], Job(tune=tune, microbatch_tokens=512), GPU)[-1] for tune in ("lora", "full"))
    assert 14e9 < lora.bytes < 20e9
    assert lora.fits
    assert full.bytes > 10 * lora.bytes
    assert not full.fits


def test_short_rows_with_plain_attention_keep_its_weights() -> None:
    shape, job = SIZES["smollm2"], Job(prompt_tokens=40, new_tokens=40)
    plain = dataclasses.replace(job, plain_attention_up_to=96)
    # Weights of 9 heads, less one copy of queries (576) and keys (192).
    assert kept_for_backward(shape, plain) - kept_for_backward(shape, job) == 30 * ((4 + 2) * 9 * 80 - 2 * 768)
    longer = dataclasses.replace(plain, new_tokens=100)
    assert kept_for_backward(shape, longer) == kept_for_backward(shape, job)


def test_devices_share_weights_rows_and_time() -> None:
    job = Job(tune="full", batch=256)
    one, eight = (plan(SIZES["8B"], job, GPU, devices=count) for count in (1, 8))
    for name in ("base weights", "AdamW moments", "fp32 masters"):
        assert eight[2].parts[name] * 8 == pytest.approx(one[2].parts[name], rel=1e-6)
    assert eight[2].seconds == pytest.approx(one[2].seconds / 8)
    assert eight[2].tokens_per_s == pytest.approx(8 * one[2].tokens_per_s)
    assert [phase.phase for phase in plan(SIZES["8B"], job, GPU, has_sampling=False)] == ["training"]
    with pytest.raises(UsageError, match="0 devices"):
        plan(SIZES["8B"], job, GPU, devices=0)


def test_a_small_batch_decodes_as_fast_as_weights_are_read() -> None:
    job = Job(batch=1, prompt_tokens=1, new_tokens=100)
    sampling = plan(SIZES["7B"], job, GPU)[0]
    # 13.2 GB of weights (less the input embeddings) at 3,350 GB/s: 254 tokens a second, the cache is nothing.
    assert sampling.tokens_per_s == pytest.approx(3350e9 / 13.2e9, rel=0.02)  # cache and prompt


def test_the_parts_of_a_phase_add_up() -> None:
    for tune in ("lora", "full"):
        job = Job(tune=tune)
        for phase in plan(SIZES["1B"], job, GPU):
            assert sum(phase.parts.values()) == phase.bytes == peak_bytes(SIZES["1B"], job, phase.phase)
            assert min(phase.parts.values()) >= 0
            assert set(working_bytes(SIZES["1B"], job, phase.phase)) <= set(phase.parts)


def test_adapters_on_the_upper_half_cost_half_of_what_depends_on_the_adapted_layers() -> None:
    shape = SIZES["smollm2"]
    whole, half = Job(), Job(top_layers=15)
    assert 2 * kept_for_backward(dataclasses.replace(shape, layers=15), half) == kept_for_backward(shape, whole)
    by_phase = [{item.phase: item for item in plan(shape, job, GPU)} for job in (whole, half)]
    saved = [phases["training"].parts["kept for backward"] for phases in by_phase]
    assert 2 * saved[1] == saved[0]
    # Without the output layer training would take half the time.
    assert 0.5 < by_phase[1]["training"].seconds / by_phase[0]["training"].seconds < 0.7
    by_share = [peak_bytes(shape, Job(top_layers=top), "training") for top in (15, 0.5)]
    assert by_share[0] == by_share[1]
    with pytest.raises(UsageError, match="top_layers is 31, the model has 30 layers"):
        plan(shape, Job(top_layers=31), GPU)


def test_a_critic_that_is_a_head_costs_its_states_and_no_training() -> None:
    own, head = (SIZES["7B"], Job()), (SIZES["7B"], Job(trained_roles=1, has_head_critic=True))
    saved = resident_bytes(*own)["AdamW moments"] - resident_bytes(*head)["AdamW moments"]
    assert saved == resident_bytes(*head)["AdamW moments"], "half of it was the critic's"
    # Kept in bf16 for 64 rows of 128 tokens; the pass that gives them has them in fp32 too.
    numbers = 64 * 128 * SIZES["7B"].hidden
    assert working_bytes(*head, "training")["critic's states"] == 2 * numbers
    assert working_bytes(*head, "scoring")["critic's states"] == 6 * numbers
    assert "critic's states" not in working_bytes(*own, "training")
    device = Device(memory=80e9, matrix_rate=1e15, bandwidth=3e12)
    seconds = [[phase.seconds for phase in plan(*work, device)] for work in (own, head)]
    # Sampling is the same; a pass less in scoring, half or less of the training.
    assert seconds[0][0] == seconds[1][0]
    assert seconds[0][1] > seconds[1][1]
    assert 0.5 * seconds[0][2] <= seconds[1][2] < 0.65 * seconds[0][2], "the output layer is the policy's alone"

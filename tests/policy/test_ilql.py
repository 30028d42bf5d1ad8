"""ILQL: what it learns from, microbatches, its mistakes, the guided policy and its files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.artifacts import read_json
from harken.config import ComputeConfig, FullConfig, GenerateConfig, IlqlConfig, SamplingConfig
from harken.errors import DataError, UsageError
from harken.generate.sampling import generate
from harken.lm.batch import pad
from harken.lm.load import load_model
from harken.lm.q_heads import HEADS_FILE, add_guided_role, read_guide
from harken.lm.trunk import Trunk
from harken.policy.ilql import HEADS, POLICY, batch_loss, ilql, prepare, read_scored, train_step
from tests.policy import material


def _gradients(model: Path, config: IlqlConfig) -> dict[str, torch.Tensor]:
    """Return the gradients of one batch, by role and parameter; the step itself is left out."""
    state = prepare(model, config, 1)
    learned, _ = read_scored(state.trunk, material.scored()[:8], [], config)
    for optimizer in state.optimizers.values():
        optimizer.step = lambda: 0.0
    train_step(state, learned, config, step=0)
    parameters = {
        f"{role} {name}": value for role in (POLICY, HEADS) for name, value in state.trunk.parameters(role).items()
    }
    assert all(value.grad is not None for value in parameters.values())
    return {name: value.grad for name, value in parameters.items() if value.grad is not None}


def test_microbatches_change_no_gradient(tiny_model_dir: Path) -> None:
    small = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=13, chunk_tokens=3)
    whole = _gradients(tiny_model_dir, material.ilql_config(tune=FullConfig()))
    parts = _gradients(tiny_model_dir, material.ilql_config(tune=FullConfig(), compute=small))
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_score_is_the_reward_of_the_last_token_standardized(tiny_model_dir: Path) -> None:
    config = material.ilql_config()
    state = prepare(tiny_model_dir, config, 1)
    learned, measured = read_scored(state.trunk, material.scored()[:16], material.scored()[16:], config)
    assert float(learned.scores.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(learned.scores.std(unbiased=False)) == pytest.approx(1.0)
    # Scores 0, 1, 2, 3, 4 in turn, 16 of them: mean 30 / 16, mean square 90 / 16.
    spread = math.sqrt(90 / 16 - (30 / 16) ** 2)
    assert measured.scores.tolist() == pytest.approx([(score - 30 / 16) / spread for score in (1, 2, 3, 4)])
    raw, _ = read_scored(
        state.trunk, material.scored()[:16], [], config.model_copy(update={"standardize_scores": False})
    )
    assert raw.scores.tolist() == [index % 5 for index in range(16)]


def test_what_cannot_be_learned_from_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    same = [item.model_copy(update={"score": 2.0}) for item in material.scored()]
    for number, (items, problem) in enumerate(
        [([], "no scored completions"), (same, "all 16 completions have the score 2")]
    ):
        with pytest.raises(DataError, match=problem):
            ilql(tiny_model_dir, items, tmp_path / str(number), material.ilql_config())
    with pytest.raises(DataError, match="the limit is 5"):
        ilql(tiny_model_dir, material.scored(), tmp_path / "long", material.ilql_config(max_length=5))


def test_target_heads_start_as_the_heads_and_follow_them(tiny_model_dir: Path) -> None:
    config = material.ilql_config()
    state = prepare(tiny_model_dir, config, 2)
    learned, _ = read_scored(state.trunk, material.scored()[:8], [], config)
    first = state.trunk.state("targets")
    train_step(state, learned, config, step=0)
    assert all(torch.equal(value, state.trunk.state("targets")[name]) for name, value in first.items())
    train_step(state, learned, config, step=1)
    heads = state.trunk.state(HEADS)
    for name, value in state.trunk.state("targets").items():
        expected = first[name].lerp(heads[name.replace("head.", "head.q.")], 0.5)
        torch.testing.assert_close(value, expected)


def test_the_guided_policy_draws_from_policy_times_exp_beta_q(tiny_model_dir: Path) -> None:
    state = prepare(tiny_model_dir, material.ilql_config(), 1)
    learned, _ = read_scored(state.trunk, material.scored()[:4], [], material.ilql_config())
    trunk = state.trunk
    prompt = learned.tokens[0].prompt
    role = add_guided_role(trunk, POLICY, state.targets, 2.5)
    settings = GenerateConfig(sampling=SamplingConfig(max_new_tokens=3), chat=material.RAW, compute=material.COMPUTE)
    drawn = generate(trunk, [material.prompt("say")] * 2, settings, role=role)
    for item in drawn:
        ids = torch.tensor([[*prompt, *(item.token_ids or ())]])
        with torch.no_grad():
            network: Any = trunk.network(POLICY)
            hidden = network.base_model(input_ids=ids).last_hidden_state[0]
            logits = network.get_output_embeddings()(hidden) + 2.5 * state.targets(hidden)
        start = len(prompt) - 1
        expected = logits.log_softmax(-1)[start:-1].gather(1, ids[0, start + 1 :, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(item.sampler_logprobs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_trained_model_writes_from_its_folder_as_in_memory(tune: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.ilql_config(beta=3.0, **({"tune": FullConfig()} if tune == "full" else {}))
    folder = ilql(tiny_model_dir, material.scored(), tmp_path / "run", config)
    found = read_json(tmp_path / "run" / "evaluation.json")
    assert found["num_completions"] == 4
    assert found["loss"] > 0
    trunk = Trunk(load_model(folder, compute=material.COMPUTE, chat=material.RAW))
    role = read_guide(trunk, folder, None)
    assert role == "guided"
    settings = GenerateConfig(
        sampling=SamplingConfig(max_new_tokens=4), chat=material.RAW, compute=material.COMPUTE, completions_per_prompt=8
    )
    texts = {
        beta: [
            item.token_ids
            for item in generate(trunk, material.prompts(2), settings, role=read_guide(trunk, folder, beta))
        ]
        for beta in (None, 3.0, 0.0)
    }
    assert texts[None] == texts[3.0]
    plain = generate(trunk, material.prompts(2), settings)
    assert texts[0.0] == [item.token_ids for item in plain]
    assert texts[3.0] != texts[0.0]


def test_guidance_without_heads_and_heads_of_another_model_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    assert read_guide(trunk, tiny_model_dir, None) is None
    with pytest.raises(UsageError, match="holds no Q heads"):
        read_guide(trunk, tiny_model_dir, 1.0)
    folder = ilql(tiny_model_dir, material.scored(), tmp_path / "run", material.ilql_config())
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / HEADS_FILE).write_bytes((folder / HEADS_FILE).read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read"):
        read_guide(trunk, damaged, None)


def test_the_loss_sees_completion_tokens_only(tiny_model_dir: Path) -> None:
    # Texts alone, without padding, and together, with it.
    config = material.ilql_config()
    state = prepare(tiny_model_dir, config, 1)
    learned, _ = read_scored(state.trunk, material.scored()[:4], [], config)
    alone = [
        batch_loss(state, pad([tokens]), learned.scores[row : row + 1], config, 1.0).loss
        for row, tokens in enumerate(learned.tokens)
    ]
    together = batch_loss(state, pad(learned.tokens), learned.scores, config, 1.0).loss
    torch.testing.assert_close(torch.stack(alone).sum(), together)

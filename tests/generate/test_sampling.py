"""Prompts to completions: one record each, repeatable, and never beyond the context."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from harken.config import ComputeConfig, GenerateConfig, SamplingConfig
from harken.errors import DataError
from harken.generate.sampling import generate
from harken.lm.load import load_model
from harken.lm.sample import Sampled
from harken.lm.trunk import Trunk
from harken.records import Completion, Message, Prompt, SamplingSettings

PROMPTS = [
    Prompt(id=f"p{index}", messages=(Message(role="user", content="x" * size),))
    for index, size in enumerate((3, 40, 1, 12))
]


def _trunk(folder: Path) -> Trunk:
    return Trunk(load_model(folder, compute=ComputeConfig(dtype="float32", device="cpu")))


def _config(**values: object) -> GenerateConfig:
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.9)
    return GenerateConfig.model_validate({"sampling": sampling, "completions_per_prompt": 2, **values})


def test_each_prompt_gets_its_completions_in_order_with_everything_recorded(tiny_model_dir: Path) -> None:
    trunk = _trunk(tiny_model_dir)
    done = generate(trunk, PROMPTS, _config(), model="a model")
    assert [item.prompt_id for item in done] == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]
    assert len({item.id for item in done}) == len({item.seed for item in done}) == 8
    for item in done:
        assert item.token_ids is not None
        assert item.sampler_logprobs is not None
        assert item.num_tokens == len(item.token_ids) == len(item.sampler_logprobs) <= 6
        assert item.message.role == "assistant"
        assert item.message.content == trunk.chat.decode_completion(list(item.token_ids))
        assert item.finish_reason == ("stop" if item.token_ids[-1] in trunk.chat.stop_ids else "length")
        assert item.sampling is not None
        assert (item.sampling.temperature, item.sampling.max_new_tokens, item.model) == (0.9, 6, "a model")
        assert Completion.model_validate_json(item.model_dump_json()) == item


def test_batch_size_changes_no_completion_and_the_seed_changes_them(tiny_model_dir: Path) -> None:
    trunk = _trunk(tiny_model_dir)
    first = generate(trunk, PROMPTS, _config())
    tokens = [item.token_ids for item in first]
    assert first[0].model == str(tiny_model_dir)
    for batch_size in (1, 3, 5):
        again = generate(trunk, PROMPTS, _config(batch_size=batch_size))
        assert [(item.id, item.token_ids) for item in again] == [(item.id, item.token_ids) for item in first]
    assert [item.token_ids for item in generate(trunk, PROMPTS, _config(seed=1))] != tokens


def test_a_prompt_that_leaves_no_room_for_its_completion_is_refused_by_id(tiny_model_dir: Path) -> None:
    trunk = _trunk(tiny_model_dir)
    size = len(trunk.chat.encode_prompt(PROMPTS[1]))
    room = trunk.context_length - size
    assert len(generate(trunk, PROMPTS[1:2], _config(sampling={"max_new_tokens": room}))) == 2
    with pytest.raises(DataError, match=f"prompt 'p1' has {size} tokens, the limit is {size - 1}"):
        generate(trunk, PROMPTS, _config(sampling={"max_new_tokens": room + 1}))


def test_no_prompts_give_no_completions(tiny_model_dir: Path) -> None:
    assert generate(_trunk(tiny_model_dir), []) == []


def test_another_sampler_can_draw(tiny_model_dir: Path) -> None:
    asked: list[tuple[object, ...]] = []

    def echo(
        role: str | None, prompts: Sequence[list[int]], settings: SamplingSettings, *, seeds: Sequence[int], n: int = 1
    ) -> list[Sampled]:
        asked.append((role, len(prompts), settings.temperature, len(seeds), n))
        return [Sampled([65 + row], [-0.5], "length") for row in range(len(seeds))]

    done = generate(_trunk(tiny_model_dir), PROMPTS, _config(batch_size=4), sampler=echo)
    assert asked == [(None, 2, 0.9, 4, 2), (None, 2, 0.9, 4, 2)]
    assert [item.token_ids for item in done] == [(65,), (66,), (67,), (68,)] * 2
    assert [item.prompt_id for item in done] == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]

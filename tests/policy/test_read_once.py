"""Completions that stand in several groups are read once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harken.lm.batch import Tokens
from harken.lm.load import load_model
from harken.lm.trunk import Trunk
from harken.policy import preference_step
from harken.policy.preference_data import encode
from harken.policy.preference_step import all_logprobs
from tests.policy import material


def test_a_completion_in_several_pairs_is_read_once(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))
    pairs = encode(trunk, material.pairs(4, 0), material.dpo_config())
    # A round robin of the four chosen ones, which belong to different prompts, and one of them with another prompt.
    texts = [chosen for chosen, _ in pairs]
    groups = [(one, other) for place, one in enumerate(texts) for other in texts[:place]]
    groups.append((texts[0], Tokens([5, 6, 7], texts[0].completion)))
    expected = torch.stack([all_logprobs(trunk, None, [(item,)], material.COMPUTE, shared=False)[0, 0]
                            for group in groups for item in group])  # fmt: skip
    rows: list[int] = []
    reading = preference_step.group_logprobs

    def counted(trunk: Trunk, role: str | None, some: Any, **options: Any) -> torch.Tensor:
        rows.extend(len(group) for group in some)
        return reading(trunk, role, some, **options)

    monkeypatch.setattr(preference_step, "group_logprobs", counted)
    found = all_logprobs(trunk, None, groups, material.COMPUTE, shared=False)
    assert sum(rows) == 5
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-5)
    # Where nothing stands twice, pairs stay together, which share their prompt.
    rows.clear()
    all_logprobs(trunk, None, pairs, material.COMPUTE, shared=True)
    assert rows == [2] * 4

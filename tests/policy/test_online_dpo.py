"""Online DPO: pairs are the policy's own, the judge decides, the reference stays or follows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harken.config import DpoLossConfig, KtoLossConfig, LoraConfig, OptimizerConfig, SamplingConfig, SimpoLossConfig
from harken.errors import RewardError, SelfTestError, UsageError
from harken.policy.online_dpo import check_first_draw, draw, draw_metrics, judged, online_dpo, prepare
from harken.protocols import PairwiseJudge, Reward
from harken.records import Completion, Prompt
from tests.policy import material

FAST = OptimizerConfig(learning_rate=1e-2)


def early_letters(asked: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Count characters before n."""
    return [float(sum(letter < "n" for letter in item.message.content)) for item in completions]


class LetterJudge:
    """Prefers the completion with more early letters, with nine tenths' certainty."""

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion], /
    ) -> list[float]:
        ahead = [
            one - other
            for one, other in zip(early_letters(prompts, first), early_letters(prompts, second), strict=True)
        ]
        return [0.5 + 0.4 * ((lead > 0) - (lead < 0)) for lead in ahead]


@pytest.mark.parametrize("judge", [early_letters, LetterJudge()], ids=["reward", "pairwise"])
def test_the_policy_writes_more_of_what_the_judge_likes(
    judge: Reward | PairwiseJudge, tiny_model_dir: Path, tmp_path: Path
) -> None:
    changes = {"prompts_per_step": 16, "minibatch_size": 16, "score_scale": 0.5, "num_samples": 32}
    config = material.online_dpo_config(steps=24, optimizer=FAST, **changes)
    online_dpo(tiny_model_dir, material.prompts(), judge, tmp_path, config)
    samples, rows = material.rows(tmp_path / "samples.jsonl"), material.rows(tmp_path / "metrics.jsonl")
    assert len(rows) == 24
    assert len(samples) == 24 * 32
    assert rows[0]["kl_sequence"] == pytest.approx(0.0, abs=1e-4)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["kl_sequence"] > 0.01
    letters = [sum(letter < "n" for letter in row["completion"]) for row in samples]
    assert sum(letters[-256:]) > 1.1 * sum(letters[:256])
    assert ("score" in samples[0]) == ("score_mean" in rows[0]) == (judge is early_letters)
    if judge is early_letters:
        assert [row["score"] for row in samples] == letters


def test_labels_and_sides_come_from_the_scores(tiny_model_dir: Path) -> None:
    config = material.online_dpo_config(completions_per_prompt=3, score_scale=2.0)
    state = prepare(tiny_model_dir, material.prompts(), material.count_letter, config)
    drawn = draw(state, material.prompts()[:3], config, step=0)
    scores = iter([[1.0, 4.0, 2.0, 3.0, 3.0, 3.0, 0.0, -1.0, 5.0]])
    examples, given = judged(drawn, lambda *_: next(scores), config, shared=False)
    # Best and worst: 1 and 0; all equal: first and last; 2 and 1. Leads 3, 0, 6 over 2.
    expected = [(drawn.groups[0][1], drawn.groups[0][0]), (drawn.groups[1][0], drawn.groups[1][2])]
    assert examples.groups == [*expected, (drawn.groups[2][2], drawn.groups[2][1])]
    chances = [1 / (1 + math.exp(-lead)) for lead in (1.5, 0.0, 3.0)]
    assert examples.labels.tolist() == pytest.approx(chances)
    assert examples.reference[0].tolist() == pytest.approx(drawn.ref_logprobs[0, [1, 0]].tolist())
    assert given is not None
    assert given[2].tolist() == [0.0, -1.0, 5.0]
    assert draw_metrics(drawn, given)["score_mean"] == pytest.approx(20 / 9)
    hard = material.online_dpo_config(completions_per_prompt=3, soft_labels=False)
    scores = iter([[1.0, 4.0, 2.0, 3.0, 3.0, 3.0, 0.0, -1.0, 5.0]])
    assert judged(drawn, lambda *_: next(scores), hard, shared=False)[0].labels.tolist() == [1.0, 0.5, 1.0]


def test_a_pairwise_judge_orders_the_sides(tiny_model_dir: Path) -> None:
    config = material.online_dpo_config()

    class Says:
        def compare(self, *asked: object) -> list[float]:
            return [0.2, 0.9]

    state = prepare(tiny_model_dir, material.prompts(), Says(), config)
    drawn = draw(state, material.prompts()[:2], config, step=0)
    examples, given = judged(drawn, Says(), config, shared=False)
    assert examples.groups == [drawn.groups[0][::-1], drawn.groups[1]]
    assert examples.labels.tolist() == pytest.approx([0.8, 0.9])
    assert given is None
    with pytest.raises(UsageError, match="completions_per_prompt = 3"):
        prepare(tiny_model_dir, material.prompts(), Says(), material.online_dpo_config(completions_per_prompt=3))


@pytest.mark.parametrize(("answer", "message"), [([0.5], "1 probabilities for 2"), ([0.5, 1.5], "returned 1.5")])
def test_a_judge_that_answers_nonsense_is_named(answer: list[float], message: str, tiny_model_dir: Path) -> None:
    class Says:
        def compare(self, *asked: object) -> list[float]:
            return answer

    config = material.online_dpo_config()
    state = prepare(tiny_model_dir, material.prompts(), Says(), config)
    drawn = draw(state, material.prompts()[:2], config, step=0)
    with pytest.raises(RewardError, match=message):
        judged(drawn, Says(), config, shared=False)


def test_the_reference_follows_where_it_is_asked_to(tiny_model_dir: Path, tmp_path: Path) -> None:
    # After each step the policy becomes the reference, so the KL of the next draw is 0 again. The reward is one that
    # hardly ever calls two completions equal, whatever bits a processor draws with.
    config = material.online_dpo_config(reference_every=1, optimizer=FAST)
    online_dpo(tiny_model_dir, material.prompts(), early_letters, tmp_path / "moves", config)
    assert [row["kl_sequence"] for row in material.rows(tmp_path / "moves" / "metrics.jsonl")] == pytest.approx(
        [0.0] * 4, abs=1e-4
    )
    stays = material.online_dpo_config(optimizer=FAST)
    online_dpo(tiny_model_dir, material.prompts(), early_letters, tmp_path / "stays", stays)
    assert abs(material.rows(tmp_path / "stays" / "metrics.jsonl")[-1]["kl_sequence"]) > 1e-3


def test_the_first_draw_is_checked(tiny_model_dir: Path) -> None:
    config = material.online_dpo_config()
    state = prepare(tiny_model_dir, material.prompts(), material.count_letter, config)
    drawn = draw(state, material.prompts()[:2], config, step=0)
    check_first_draw(state.trunk, drawn, config)
    with pytest.raises(SelfTestError, match="policy and reference differ"):
        check_first_draw(state.trunk, replace(drawn, ref_logprobs=drawn.ref_logprobs - 1), config)
    wrong = replace(drawn, sampler_logprobs=drawn.sampler_logprobs - 1)
    with pytest.raises(SelfTestError, match="sampler and scorer"):
        check_first_draw(state.trunk, wrong, config)
    # Drawn at another temperature, the sampler's are not comparable.
    check_first_draw(state.trunk, wrong, material.online_dpo_config(sampling=SamplingConfig(temperature=0.5)))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="`harken kto`"):
        material.online_dpo_config(loss=KtoLossConfig())
    for loss in (SimpoLossConfig(), DpoLossConfig(reference_free=True)):
        with pytest.raises(ValueError, match="has no reference"):
            material.online_dpo_config(loss=loss, reference_every=2)


def test_sampled_pairs_do_not_depend_on_sharing_of_prompts(tiny_model_dir: Path) -> None:
    config = material.online_dpo_config(tune=LoraConfig())
    state = prepare(tiny_model_dir, material.prompts(), material.count_letter, config)
    shared = draw(state, material.prompts()[:3], config, step=1)
    state.shared = False
    torch.testing.assert_close(
        draw(state, material.prompts()[:3], config, step=1).ref_logprobs, shared.ref_logprobs, rtol=1e-4, atol=1e-4
    )

"""What is written for TRL and `datasets` is read by them: loaded by their loaders, rendered by their templates."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer
from trl.data_utils import (
    apply_chat_template,
    extract_prompt,
    is_conversational,
    maybe_extract_prompt,
    maybe_unpair_preference_dataset,
)
from trl.trainer.reward_trainer import DataCollatorForPreference

from harken.feedback.exchange.derive import pairs_of
from harken.feedback.exchange.entry import Entry, Reading, make_completion, make_judgment, make_prompt, message
from harken.feedback.exchange.read import open_data
from harken.feedback.exchange.trl import RIGHT, WRONG
from harken.feedback.exchange.write import Style, Target, plan, suffixes, write
from harken.records import Answer, Comparison, DemonstrationAnswer, ErrorSpan, RatedAxis, Rating, Spans

QUESTION = "The sky is"


def entry(answer_of: Any, *texts: str, role: str = "user") -> Entry:
    prompt = make_prompt([message(role, f"{QUESTION} " if role == "assistant" else QUESTION)])
    both = [make_completion(prompt, text) for text in texts]
    answer: Answer = answer_of(both)
    return Entry(1, prompt, tuple(both), (make_judgment(1, prompt, both, answer),))


def won(strength: Any = 2, role: str = "user") -> Entry:
    return entry(
        lambda both: Comparison(outcome="win", winner=both[0].id, strength=strength), "blue.", "green.", role=role
    )


def entries_for(target: Target) -> list[Entry]:
    match target:
        case "trl-unpaired":
            return [entry(lambda both: Rating(axes={"label": RatedAxis(value=1, low=0, high=1)}), "blue.")]
        case "trl-completions" | "trl-messages":
            return [entry(lambda both: DemonstrationAnswer(text="blue."))]
        case "trl-text":
            prompt = make_prompt([message("assistant", "The ")])
            return [Entry(1, prompt, (), (make_judgment(1, prompt, (), DemonstrationAnswer(text="sky is blue.")),))]
        case "trl-steps":

            def steps(both: Any) -> Spans:
                ends = ((0, 3, RIGHT), (4, 7, WRONG))
                return Spans(
                    spans=tuple(ErrorSpan(completion_id=both[0].id, start=a, end=b, label=c) for a, b, c in ends)
                )

            return [entry(steps, "one\ntwo")]
        case "trl-implicit":
            return [won(role="assistant")]
        case _:
            return [won()]


def written(target: Target, found: list[Entry], folder: Path, suffix: str, *, texts: bool) -> Any:
    """Write a file and load it with the library that TRL's and OpenRLHF's users load it with."""
    path = folder / f"data{suffix}"
    write(found, path, target, Style(texts=texts), {})
    kind = "parquet" if suffix == ".parquet" else "json"
    load: Any = datasets.load_dataset
    return load(kind, data_files=str(path), split="train", cache_dir=str(folder / "cache"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


STANDARD: dict[Target, dict[str, Any]] = {
    "trl-preference": {"prompt": QUESTION, "chosen": "blue.", "rejected": "green.", "margin": 2.0},
    "openrlhf": {"prompt": QUESTION, "chosen": "blue.", "rejected": "green.", "margin": 2.0},
    "trl-implicit": {"chosen": "The sky is blue.", "rejected": "The sky is green.", "margin": 2.0},
    "trl-unpaired": {"prompt": QUESTION, "completion": "blue.", "label": True},
    "trl-prompts": {"prompt": QUESTION},
    "trl-completions": {"prompt": QUESTION, "completion": "blue."},
    "trl-text": {"text": "The sky is blue."},
    "trl-steps": {"prompt": QUESTION, "completions": ["one", "two"], "labels": [True, False]},
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("target", STANDARD)
def test_standard_forms_are_trls_to_the_letter(target: Target, suffix: str, tmp_path: Path) -> None:
    (row,) = written(target, entries_for(target), tmp_path, suffix, texts=True)
    assert row == STANDARD[target]
    assert not is_conversational(row)


ASKED = {"role": "user", "content": QUESTION}
BLUE, GREEN = ({"role": "assistant", "content": text} for text in ("blue.", "green."))
CONVERSATIONAL: dict[Target, dict[str, Any]] = {
    "trl-preference": {"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN], "margin": 2.0},
    "openrlhf": {"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN], "margin": 2.0},
    "trl-implicit": {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN], "margin": 2.0},
    "trl-unpaired": {"prompt": [ASKED], "completion": [BLUE], "label": True},
    "trl-prompts": {"prompt": [ASKED]},
    "trl-completions": {"prompt": [ASKED], "completion": [BLUE]},
    "trl-messages": {"messages": [ASKED, BLUE]},
}


@pytest.mark.parametrize("target", CONVERSATIONAL)
def test_conversational_forms_are_rendered_by_trl(target: Target, tmp_path: Path, tiny_model_dir: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    found = [won()] if target == "trl-implicit" else entries_for(target)
    for suffix in suffixes(target):
        (row,) = written(target, found, tmp_path, suffix, texts=False)
        assert row == CONVERSATIONAL[target]
        assert is_conversational(row)
        rendered = apply_chat_template(row, tokenizer)
        texts = [str(rendered[key]) for key in ("prompt", "chosen", "completion", "text") if key in rendered]
        assert QUESTION in texts[0]
        assert "blue." in texts[-1] or target == "trl-prompts"


def test_trl_finds_the_prompt_that_is_implicit_and_takes_pairs_apart(tmp_path: Path) -> None:
    (row,) = written("trl-implicit", [won()], tmp_path, ".jsonl", texts=False)
    assert (
        maybe_extract_prompt(row) == extract_prompt(row) == {"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN]}
    )
    both = maybe_unpair_preference_dataset(written("trl-preference", [won()], tmp_path, ".json", texts=False))
    assert [(one["completion"], one["label"]) for one in both] == [([BLUE], True), ([GREEN], False)]


def test_margins_are_in_all_rows_or_in_none_because_trl_stops_otherwise(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        DataCollatorForPreference(0)(
            [{"chosen_ids": [1], "rejected_ids": [2], "margin": margin} for margin in (2.0, None)]
        )
    mixed = [won(), won(None)]
    loss = (
        "how much better the winner is (1) is not kept: 1 pairs do not say it, and trainers need a margin in all rows"
    )
    assert any(one.startswith(loss) for one in plan(mixed, "trl-preference", Style()).losses)
    assert not any(one.startswith(loss) for one in plan(mixed, "openrlhf", Style()).losses)
    assert written("trl-preference", mixed, tmp_path, ".jsonl", texts=False).column_names == [
        *("prompt", "chosen", "rejected")
    ]
    sure = written("trl-preference", [won(), won(0)], tmp_path, ".json", texts=False)
    assert sure["margin"][:] == [2.0, 0.0]


def test_harkens_own_pairs_keep_the_margins_that_some_have(tmp_path: Path) -> None:
    (pair,) = pairs_of(won())
    pairs = [pair.model_copy(update={"margin": 0.5}), pair.model_copy(update={"id": "other"})]
    found = [dataclasses.replace(won(), pair=one) for one in pairs]
    write(found, tmp_path / "pairs.parquet", "harken-pairs", Style(), {})
    back = [item.pair for item in open_data(Reading(tmp_path / "pairs.parquet")) if isinstance(item, Entry)]
    assert back == pairs


def test_a_column_that_the_first_row_lacks_is_in_the_parquet_file_too(tmp_path: Path) -> None:
    rows = written("openrlhf", [won(None), won()], tmp_path, ".parquet", texts=True)
    assert rows["margin"][:] == [None, 2.0]

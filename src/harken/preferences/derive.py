"""Rated completions -> what training starts from: demonstrations to imitate, and prompts to answer."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harken.artifacts import write_records
from harken.config.preferences import PreferencesConfig
from harken.records import Demonstration, Message, PreferencePair, Prompt, RatedCompletion, Split, content_id


def demonstrations_from(rated: Iterable[RatedCompletion]) -> list[Demonstration]:
    """Return every rated text as a demonstration, whatever its rating: they teach the form, not the taste."""
    return [
        Demonstration(
            id=item.completion.id,
            prompt=item.prompt,
            completion=item.completion.message,
            source=item.prompt.source,
            split=item.split,
        )
        for item in rated
    ]


def chosen_demonstrations(pairs: Iterable[PreferencePair]) -> list[Demonstration]:
    """Return the better text of every pair as a demonstration, each once."""
    found = {
        (pair.prompt.id, pair.chosen.content): Demonstration(
            id=content_id("chosen", pair.prompt.id, pair.chosen.content),
            prompt=pair.prompt,
            completion=pair.chosen,
            source=pair.prompt.source,
            split=pair.split,
        )
        for pair in pairs
    }
    return list(found.values())


def beginnings(rated: Iterable[RatedCompletion], config: PreferencesConfig) -> list[tuple[Prompt, Split]]:
    """Return (prompt, split) for each distinct beginning of a text.

    A prompt is the text's own prompt plus its first `prefix_words` words as the beginning of the assistant's message,
    which the completion continues. Texts of fewer than `min_words` words make none. A beginning that occurs on both
    sides of the split is left out of training.
    """
    found: dict[str, tuple[Prompt, Split]] = {}
    for item in rated:
        words = item.completion.message.content.split()
        if len(words) < max(config.min_words, config.prefix_words + 1):
            continue
        start = Message(role="assistant", content=" ".join(words[: config.prefix_words]))
        name = content_id(item.prompt.id, start.content)
        prompt = Prompt(id=name, messages=(*item.prompt.messages, start), source=item.completion.id)
        if name not in found or item.split == "heldout":
            found[name] = (prompt, item.split)
    return list(found.values())


def write_training_data(
    pairs: Sequence[PreferencePair],
    rated: Sequence[RatedCompletion],
    files: Mapping[str, Path],
    config: PreferencesConfig,
    *,
    parents: Mapping[str, str],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write what is wanted of `pairs`, `demonstrations`, `train_prompts` and `heldout_prompts`, each to its file.

    Pairs of ratings only have no `info`; of votes the manifest says how they were resolved. Where nothing is rated, the
    demonstrations are the chosen texts of the pairs, and the prompts theirs, whole.
    """
    prompts = beginnings(rated, config)
    demonstrations = demonstrations_from(rated)
    if not rated:
        demonstrations = chosen_demonstrations(pairs)
        # A prompt all of whose pairs are split by text (there is one prompt only) is for training.
        whole = {pair.prompt.id: (pair.prompt, pair.split) for pair in sorted(pairs, key=lambda pair: pair.split)}
        prompts = list(whole.values())
    records: dict[str, tuple[str, Sequence[PreferencePair] | Sequence[Demonstration] | Sequence[Prompt]]] = {
        "pairs": ("pairs", pairs),
        "demonstrations": ("demonstrations", demonstrations),
        "train_prompts": ("prompts", [prompt for prompt, split in prompts if split == "train"]),
        "heldout_prompts": ("prompts", [prompt for prompt, split in prompts if split == "heldout"]),
    }
    for name, path in files.items():
        kind, found = records[name]
        facts = dict(info or {}) if name == "pairs" else {}
        write_records(path, found, kind=kind, parents=parents, seeds={"seed": config.seed}, info=facts)

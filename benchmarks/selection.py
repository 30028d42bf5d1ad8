"""What the sides work on: the same token ids for all, chosen the same way on every machine and day."""

import gzip
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harken.errors import DataError
from harken.records import Demonstration, Message, PreferencePair, Prompt, content_id

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
HH_FILE = "hh-rlhf/helpful-base.test.jsonl.gz"
ROLES = {"Human": "user", "Assistant": "assistant"}
SEED = 0


def data_folder() -> Path:
    """Return `$HARKEN_DATA`, else `../shared/data` beside the repository.

    Raises:
        DataError: it does not hold the HH-RLHF pairs.
    """
    folder = Path(os.environ.get("HARKEN_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / HH_FILE).is_file():
        raise DataError(f"{folder / HH_FILE}: no such file; set HARKEN_DATA to the folder that holds it")
    return folder


def hh_pairs(folder: Path) -> list[PreferencePair]:
    """Return the pairs of the HH-RLHF file in its order; rows with two prompts or two equal sides are left out."""
    pairs: list[PreferencePair] = []
    with gzip.open(folder / HH_FILE, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            chosen, rejected = split_dialogue(row["chosen"]), split_dialogue(row["rejected"])
            if chosen is None or rejected is None or chosen[0] != rejected[0] or chosen[1] == rejected[1]:
                continue
            messages, answer = chosen
            prompt = Prompt(id=content_id([message.model_dump() for message in messages]), messages=messages)
            pairs.append(
                PreferencePair(
                    id=content_id(prompt.id, answer, rejected[1]),
                    prompt=prompt,
                    chosen=Message(role="assistant", content=answer),
                    rejected=Message(role="assistant", content=rejected[1]),
                )
            )
    return pairs


def split_dialogue(text: str) -> tuple[tuple[Message, ...], str] | None:
    """Return the messages up to the last answer, and that; None if turns do not alternate or one is empty."""
    parts = text.replace("\n\nHuman:", "\0Human:").replace("\n\nAssistant:", "\0Assistant:").split("\0")[1:]
    turns = [part.partition(":") for part in parts]
    expected = ["Human", "Assistant"] * (len(turns) // 2)
    if not turns or [name for name, _, _ in turns] != expected or not all(said.strip() for _, _, said in turns):
        return None
    messages = tuple(Message(role=ROLES[name], content=said.strip()) for name, _, said in turns)
    return messages[:-1], messages[-1].content


def choose(items: Sequence[T], sizes: Sequence[int], count: int, longest: int, *, seed: int = SEED) -> list[T]:
    """Return `count` of the items that are not longer than `longest`, at random but always the same ones.

    Raises:
        DataError: there are not that many.
    """
    fitting = [item for item, size in zip(items, sizes, strict=True) if size <= longest]
    if len(fitting) < count:
        raise DataError(f"{len(fitting)} texts have up to {longest} tokens, {count} are wanted; ask for fewer")
    random.Random(seed).shuffle(fitting)
    return fitting[:count]


def pair_rows(chat: Any, pairs: Sequence[PreferencePair], count: int, longest: int) -> list[dict[str, Any]]:
    """Return rows of a pair's record and the token ids of prompt, chosen and rejected.

    Args:
        chat: a `harken.lm.chat.Chat`.
        pairs: to choose from.
        count: how many.
        longest: most tokens of the prompt with its longer side.
    """
    rows = [
        {
            "record": pair.model_copy(update={"split": "train"}).model_dump(mode="json"),
            "prompt": chat.encode_prompt(pair.prompt),
            "chosen": chat.encode_completion(pair.chosen.content),
            "rejected": chat.encode_completion(pair.rejected.content),
        }
        for pair in pairs
    ]
    return choose(rows, [longer_side(row) for row in rows], count, longest)


def longer_side(row: Mapping[str, Any]) -> int:
    """Return the tokens of a pair's prompt with its longer side."""
    return len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))


def demonstration_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the chosen sides of pair rows as demonstrations."""
    made: list[dict[str, Any]] = []
    for row in rows:
        pair = PreferencePair.model_validate(row["record"])
        item = Demonstration(id=pair.id, prompt=pair.prompt, completion=pair.chosen)
        made.append({"record": item.model_dump(mode="json"), "prompt": row["prompt"], "chosen": row["chosen"]})
    return made


def prompt_rows(
    chat: Any, pairs: Sequence[PreferencePair], count: int, longest: int, new_tokens: int
) -> list[dict[str, Any]]:
    """Return rows of distinct prompts with a completion of exactly `new_tokens` tokens, for the proof of equal work."""
    prompts = list({pair.prompt.id: pair.prompt for pair in pairs}.values())
    encoded = [chat.encode_prompt(prompt) for prompt in prompts]
    chosen = choose(list(zip(prompts, encoded, strict=True)), [len(ids) for ids in encoded], count, longest)
    texts = fixed_rows(chat, pairs, count, new_tokens)
    return [
        {"record": prompt.model_dump(mode="json"), "prompt": ids, "completion": text}
        for (prompt, ids), text in zip(chosen, texts, strict=True)
    ]


def fixed_rows(chat: Any, pairs: Sequence[PreferencePair], count: int, size: int) -> list[list[int]]:
    """Return the first `size` tokens of `count` texts that differ from each other in them."""
    texts = [chat.encode_completion(pair.chosen.content, stopped=False)[:size] for pair in pairs]
    distinct = [list(text) for text in dict.fromkeys(map(tuple, texts)) if len(text) == size]
    return choose(distinct, [size] * len(distinct), count, size)


def step_tokens(rows: Sequence[Any], batch_size: int) -> list[int]:
    """Return the tokens of each batch of rows, the prompt counted with each completion."""
    sizes = [sum(len(row["prompt"]) + len(row[side]) for side in ("chosen", "rejected") if side in row) for row in rows]
    return [sum(sizes[start : start + batch_size]) for start in range(0, len(sizes), batch_size)]

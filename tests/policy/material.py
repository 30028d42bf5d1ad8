"""Small prompts, demonstrations, pairs and settings with which every loop runs in about a second."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harken.artifacts import sha256_file
from harken.config import (
    ChatConfig,
    ComputeConfig,
    DpoConfig,
    IlqlConfig,
    IlqlLossConfig,
    KtoConfig,
    LoraConfig,
    OnlineDpoConfig,
    OptimizerConfig,
    PpoConfig,
    RewardConfig,
    RftConfig,
    SamplingConfig,
    ScoreConfig,
    SftConfig,
    ValueConfig,
)
from harken.metrics import DECIDED_BY_MACHINE
from harken.progress import Describe, Reporter
from harken.records import Completion, Demonstration, Message, PreferencePair, Prompt, ScoredDemonstration

COMPUTE = ComputeConfig(dtype="float32", device="cpu")
RAW = ChatConfig(template="raw")
LETTER = "e"


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


class StopsAfter(Reporter):
    """Raises when a loop is about to take one more step than allowed."""

    def __init__(self, step: int) -> None:
        super().__init__(quiet=True)
        self.step = step

    def track(
        self, steps: Iterable[int], label: str, *, total: int, done: int = 0, describe: Describe | None = None
    ) -> Iterator[int]:
        for step in steps:
            if step == self.step:
                raise Stopped
            yield step
        if self.step == total:
            raise Stopped


def prompt(text: str) -> Prompt:
    return Prompt(id=f"prompt {text!r}", messages=(Message(role="user", content=text),))


def prompts(count: int = 6) -> list[Prompt]:
    return [prompt("tell " + "abcdefghij"[index % 10] * (1 + index % 3)) for index in range(count)]


def demonstrations(count: int = 12, heldout: int = 4) -> list[Demonstration]:
    texts = ["yes it is", "no", "well then", "go on now"]
    return [
        Demonstration(
            id=f"demonstration-{index}",
            prompt=prompt(f"ask {index}:"),
            completion=Message(role="assistant", content=texts[index % len(texts)]),
            split="train" if index < count else "heldout",
        )
        for index in range(count + heldout)
    ]


def text_with(rng: random.Random, letters: int, size: int = 8) -> str:
    """Return `size` random letters, `letters` of which are LETTER."""
    body = [LETTER] * letters + [rng.choice("abcdfghij") for _ in range(size - letters)]
    rng.shuffle(body)
    return "".join(body)


def pairs(count: int = 16, heldout: int = 8, *, seed: int = 0) -> list[PreferencePair]:
    """Return pairs whose chosen side has more of LETTER."""
    rng = random.Random(seed)
    found: list[PreferencePair] = []
    for index in range(count + heldout):
        fewer, more = sorted(rng.sample(range(6), 2))
        found.append(
            PreferencePair(
                id=f"pair-{index}",
                prompt=prompt("say"),
                chosen=Message(role="assistant", content=text_with(rng, more)),
                rejected=Message(role="assistant", content=text_with(rng, fewer)),
                split="train" if index < count else "heldout",
            )
        )
    return found


def count_letter(asked: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [float(completion.message.content.count(LETTER)) for completion in completions]


def completion_of(asked: Prompt, text: str, **fields: Any) -> Completion:
    message = Message(role="assistant", content=text)
    return Completion(id=f"{asked.id} {text}", prompt_id=asked.id, message=message, **fields)


def sft_config(**changes: Any) -> SftConfig:
    settings: dict[str, Any] = {"batch_size": 4, "chat": RAW, "compute": COMPUTE, "epochs": 2}
    return SftConfig(**(settings | changes))


def reward_config(**changes: Any) -> RewardConfig:
    settings: dict[str, Any] = {
        "batch_size": 4,
        "normalization_samples": 8,
        "sampling": SamplingConfig(max_new_tokens=4),
        "chat": RAW,
        "compute": COMPUTE,
    }
    return RewardConfig(**(settings | changes))


def dpo_config(**changes: Any) -> DpoConfig:
    settings: dict[str, Any] = {"batch_size": 4, "chat": RAW, "compute": COMPUTE}
    return DpoConfig(**(settings | changes))


def kto_config(**changes: Any) -> KtoConfig:
    settings: dict[str, Any] = {"batch_size": 4, "chat": RAW, "compute": COMPUTE}
    return KtoConfig(**(settings | changes))


def online_dpo_config(**changes: Any) -> OnlineDpoConfig:
    settings: dict[str, Any] = {
        "steps": 4,
        "prompts_per_step": 4,
        "minibatch_size": 2,
        "sampling": SamplingConfig(max_new_tokens=6),
        "optimizer": OptimizerConfig(learning_rate=3e-3),
        "num_samples": 2,
        "chat": RAW,
        "compute": COMPUTE,
    }
    return OnlineDpoConfig(**(settings | changes))


def ilql_config(**changes: Any) -> IlqlConfig:
    settings: dict[str, Any] = {
        "batch_size": 4,
        "loss": IlqlLossConfig(target_rate=0.5, target_every=2),
        "chat": RAW,
        "compute": COMPUTE,
    }
    return IlqlConfig(**(settings | changes))


def scored(count: int = 16, heldout: int = 4, *, seed: int = 0) -> list[ScoredDemonstration]:
    """Return texts whose score is the number of LETTER in them."""
    rng = random.Random(seed)
    found: list[ScoredDemonstration] = []
    for index in range(count + heldout):
        text = text_with(rng, index % 5)
        found.append(
            ScoredDemonstration(
                id=f"scored-{index}",
                prompt=prompt("say"),
                completion=Message(role="assistant", content=text),
                score=float(text.count(LETTER)),
                split="train" if index < count else "heldout",
            )
        )
    return found


def rft_config(**changes: Any) -> RftConfig:
    settings: dict[str, Any] = {
        "completions_per_prompt": 8,
        "keep": 2,
        "batch_size": 4,
        "sampling": SamplingConfig(max_new_tokens=40, temperature=1.5),
        "chat": RAW,
        "compute": COMPUTE,
    }
    return RftConfig(**(settings | changes))


def ppo_config(**changes: Any) -> PpoConfig:
    settings: dict[str, Any] = {
        "steps": 4,
        "prompts_per_step": 4,
        "completions_per_prompt": 2,
        "epochs": 2,
        "minibatch_size": 4,
        "approx_kl_limit": None,
        "sampling": SamplingConfig(max_new_tokens=6),
        "score": ScoreConfig(stop_penalty="none"),
        # All that can learn learns, so that what holds of training is seen in all of it.
        "tune": LoraConfig(),
        "value": ValueConfig(critic="own"),
        "policy_optimizer": OptimizerConfig(learning_rate=1e-3, eps=1e-5),
        "num_samples": 2,
        "chat": RAW,
        "compute": COMPUTE,
    } | changes
    if settings["value"].critic == "own":
        settings.setdefault("critic_optimizer", OptimizerConfig(learning_rate=1e-3, eps=1e-5))
    return PpoConfig(**settings)


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics or samples file, less what the clock decides."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(DECIDED_BY_MACHINE)} for row in found]


def hashes(folder: Path, *, keep: Callable[[Path], bool] = lambda path: True) -> dict[str, str]:
    """Return the sha256 of every file below a folder; half-written ones, which a kill may leave, are no part of it."""
    whole = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    files = sorted(path for path in whole if keep(path))
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}

"""Harken's side of sft, reward, reward-lora and dpo: the public functions, with a reporter that times each step."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from common import now, peak_bytes, read_lines

from harken.config import (
    ChatConfig,
    ComputeConfig,
    DpoConfig,
    FullConfig,
    LoraConfig,
    OptimizerConfig,
    RewardConfig,
    SftConfig,
)
from harken.policy import preference as preference_module
from harken.policy import preference_data
from harken.policy import sft as sft_module
from harken.progress import Reporter
from harken.records import Demonstration, PreferencePair
from harken.reward import train as reward_module

NEVER = 10**9
ALL_LAYERS = LoraConfig(rank=16, alpha=32)
UPPER_HALF, UPPER_THIRD = (ALL_LAYERS.model_copy(update={"top_layers": count}) for count in (15, 10))
TUNES = {"lora": ALL_LAYERS, "half": UPPER_HALF, "third": UPPER_THIRD, "full": FullConfig()}
"""What `--tune` says: adapters on all layers, on the upper ones only, or all weights."""


class StepClock(Reporter):
    """A reporter that says nothing and takes the time of each step by label, and the peak memory up to then."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(quiet=True)
        self.seconds: dict[str, list[float]] = {}
        self.peak = 0

    def track(self, steps: Iterable[int], label: str, **_: Any) -> Iterator[int]:
        """Yield the steps; a step ends when the next one is asked for."""
        own = self.seconds.setdefault(label, [])
        for step in steps:
            started = now()
            yield step
            own.append(now() - started)
            self.peak = peak_bytes()


def fine_tune(job: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Run `harken.policy.sft.sft`."""
    config = SftConfig(**training(job))
    items = [Demonstration.model_validate(row["record"]) for row in data["rows"]]
    sizes = [len(row["prompt"]) + len(row["chosen"]) for row in data["rows"]]
    clock = StepClock()
    with watched(sft_module, sft_module) as seen, tempfile.TemporaryDirectory(dir=job["scratch"]) as folder:
        sft_module.sft("smollm2", items, Path(folder) / "run", config, reporter=clock)
        rows = read_lines(Path(folder) / "run" / "metrics.jsonl")
    return finished(job, seen, clock, clock.seconds["sft"], sizes, rows)


def reward(job: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Run `harken.reward.train.train_reward`, as plain Bradley-Terry, which is what the peers train."""
    config = RewardConfig(
        margins=(0, 0, 0, 0), soft_labels=False, centering=0, normalization_samples=0, **training(job)
    )
    clock = StepClock()
    with watched(reward_module) as seen, tempfile.TemporaryDirectory(dir=job["scratch"]) as folder:
        reward_module.train_reward("smollm2", pairs_of(data), Path(folder) / "run", config, reporter=clock)
        rows = read_lines(Path(folder) / "run" / "metrics.jsonl")
    return finished(job, seen, clock, clock.seconds["reward"], pair_sizes(data), rows)


def preference(job: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Run `harken.policy.preference.dpo`; reading the reference, once before the steps, is shared out among them."""
    config = DpoConfig(soft_labels=False, **training(job))
    read_reference, reading, found = preference_module.reference_logprobs, 0.0, None

    def timed_reference(*arguments: Any, **options: Any) -> Any:
        nonlocal reading, found
        started = now()
        found = read_reference(*arguments, **options)
        reading = now() - started
        return found

    clock = StepClock()
    with (
        watched(preference_module, preference_data) as seen,
        mock.patch.object(preference_module, "reference_logprobs", timed_reference),
        tempfile.TemporaryDirectory(dir=job["scratch"]) as folder,
    ):
        preference_module.dpo("smollm2", pairs_of(data), Path(folder) / "run", config, reporter=clock)
        rows = read_lines(Path(folder) / "run" / "metrics.jsonl")
    share = reading / len(clock.seconds["dpo"])
    steps = [seconds + share for seconds in clock.seconds["dpo"]]
    result = finished(job, seen, clock, steps, pair_sizes(data), rows)
    if job["check"]:
        assert found is not None
        chosen, rejected = found[: job["batch_size"]].mean(0).tolist()
        result["proof"] |= {"log p of chosen": chosen, "log p of rejected": rejected}
    result["settings"]["reference"] = f"read once, {share:.2f} s of each step"
    return result


def training(job: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that all training stages share; what is not named here is Harken's default."""
    return {
        "batch_size": job["batch_size"],
        "max_length": job["max_length"],
        "save_every": NEVER,
        "tune": TUNES[job["tune"]],
        "optimizer": OptimizerConfig(**job["optimizer"]),
        "chat": ChatConfig(template=job["template"]),
        "compute": ComputeConfig(dtype=job["dtype"]),
    }


@contextlib.contextmanager
def watched(module: ModuleType, chooser: ModuleType | None = None) -> Iterator[dict[str, Any]]:
    """Let a training loop read its data in the order of the file, so that step by step all sides read the same.

    Args:
        module: of the loop.
        chooser: what draws the loop's items with `draw_subset`, if anything does.

    Yields: facts that become known in the loop: the type that was chosen for weights and activations.
    """
    seen: dict[str, Any] = {}
    load_model = module.load_model

    def batches(rows: Sequence[int], batch_size: int, **_: Any) -> list[list[int]]:
        return [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]

    def subset(count: int, *_: Any) -> list[int]:
        return list(range(count))

    def load(*arguments: Any, **options: Any) -> Any:
        loaded = load_model(*arguments, **options)
        seen["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
        return loaded

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(module, "load_model", load))
        stack.enter_context(mock.patch.object(module, "shuffled_batches", batches))
        if chooser is not None:
            stack.enter_context(mock.patch.object(chooser, "draw_subset", subset))
        yield seen


def pairs_of(data: dict[str, Any]) -> list[PreferencePair]:
    """Return the records of the data file."""
    return [PreferencePair.model_validate(row["record"]) for row in data["rows"]]


def pair_sizes(data: dict[str, Any]) -> list[int]:
    """Return the tokens of each pair, its prompt counted on both sides, whether or not it is computed twice."""
    return [2 * len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) for row in data["rows"]]


def finished(
    job: dict[str, Any],
    seen: dict[str, Any],
    clock: StepClock,
    seconds: list[float],
    sizes: list[int],
    rows: list[dict[str, float]],
) -> dict[str, Any]:
    """Return what `emit` takes: tokens by step; losses, and with all weights the first gradient's norm, as proof."""
    batch = job["batch_size"]
    tokens = [sum(sizes[start : start + batch]) for start in range(0, len(sizes), batch)]
    proof: dict[str, float] = {}
    if job["check"]:
        proof = {f"loss of step {row['step']}": row["loss"] for row in rows}
        if job["tune"] == "full":  # adapters start from random numbers, and their gradients differ with them
            proof["gradient norm of step 1"] = rows[0]["grad_norm"]
    settings = {**seen, "tune": job["tune"], "microbatch_tokens": ComputeConfig().microbatch_tokens}
    return {"seconds": seconds, "tokens": tokens, "proof": proof, "settings": settings, "peak": clock.peak}

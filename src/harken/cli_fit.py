"""`--fit` of the training commands: measure, choose, and put what was chosen into the command's settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from harken.cli_common import reporter

if TYPE_CHECKING:
    from harken.config import PpoConfig, RewardConfig, SftConfig
    from harken.lm.chat import Chat
    from harken.plan import Job, Phase
    from harken.progress import Reporter
    from harken.records import Demonstration, PreferencePair, Prompt

    TrainingConfig = TypeVar("TrainingConfig", SftConfig, RewardConfig, PpoConfig)

FitOption = Annotated[
    bool,
    typer.Option(
        "--fit", help="First measure how much to sample, score and train on at a time, and take what is fastest here."
    ),
]

MEASURED_TEXTS = 256
"""Texts whose tokens are counted to learn how long rows are."""


def fitted(
    config: "TrainingConfig",
    out: Path,
    model: str,
    data: "Sequence[Demonstration] | Sequence[PreferencePair] | Sequence[Prompt]",
) -> "tuple[TrainingConfig, Reporter]":
    """Return settings with the sizes that were chosen, and a reporter that checks the predicted memory.

    A run folder that was started before keeps its sizes.

    Args:
        config: the stage's settings; its sizes are replaced.
        out: the run folder.
        model: what `--model` says.
        data: the stage's records, whose lengths count.
    """
    sizes = _sizes_of_started_run(out)
    if sizes is not None:
        progress = reporter()
        progress.say("fit: this run was started before; its sizes stay as they are")
        return _with_sizes(config, sizes), progress
    from harken.lm.fit import PeakCheck, fit
    from harken.lm.load import load_model, pick_device
    from harken.lm.machine import available_memory, memory_in_use
    from harken.lm.trunk import Trunk

    progress, device = reporter(), pick_device(config.compute.device)
    before, available = memory_in_use(device), available_memory(device)
    trunk = Trunk(load_model(model, compute=config.compute, chat=config.chat, notify=progress.say))
    job, phases = describe(config, data, trunk.chat, trunk.dtype.itemsize, is_cpu=device.type == "cpu")
    found = fit(trunk, job, phases, available=available, notify=progress.say)
    chosen: dict[Phase, int] = {phase: getattr(found.job, name) for phase, name in SIZES.items() if phase in phases}
    progress.say(f"fit: predicted peak memory {found.peak_bytes / 1e9:.2f} GB, {available / 1e9:.2f} GB were free")
    for phase, (old, new) in _changes(config, chosen).items():
        progress.say(f"fit: {phase}: {new} replaces {old} of the settings")
    return _with_sizes(config, chosen), PeakCheck(found.peak_bytes, before, device)


SIZES: "dict[Phase, str]" = {
    "sampling": "sampling_rows",
    "scoring": "scoring_tokens",
    "training": "microbatch_tokens",
}
"""Phase -> field of `harken.plan.Job`; only PPO's settings have sampling rows, as `sampling_batch_size`."""


def describe(
    config: "SftConfig | RewardConfig | PpoConfig",
    data: Sequence[Any],
    chat: "Chat",
    weight_bytes: int,
    *,
    is_cpu: bool,
) -> "tuple[Job, tuple[Phase, ...]]":
    """Return one step of a stage as a `Job`, with rows of the data's mean length, and the phases it has.

    Args:
        config: decides which stage it is.
        data: its records.
        chat: counts their tokens.
        weight_bytes: 2 or 4.
        is_cpu: short rows in bf16 then take plain attention, which keeps its weights.
    """
    from harken.config import LoraConfig, PpoConfig, RewardConfig
    from harken.lm.batch import PACKED_ROW
    from harken.lm.fit import cpu_settings
    from harken.plan import Job

    some: Sequence[Any] = data[:MEASURED_TEXTS]
    lora = config.tune if isinstance(config.tune, LoraConfig) else None
    shared: dict[str, Any] = {
        "tune": config.tune.kind,
        "rank": 16 if lora is None else lora.rank,
        "top_layers": None if lora is None else lora.top_layers,
        "weight_bytes": weight_bytes,
        "chunk_tokens": config.compute.chunk_tokens,
        "scoring_tokens": config.compute.scoring_tokens,
        "microbatch_tokens": config.compute.microbatch_tokens,
        **(cpu_settings(weight_bytes) if is_cpu else {}),
    }
    if isinstance(config, PpoConfig):
        return Job(
            **shared,
            trained_roles=1 + (config.has_critic and not config.has_head_critic),
            has_head_critic=config.has_head_critic,
            batch=config.rollouts,
            step_rows=config.minibatch_size,
            prompt_tokens=_mean([len(chat.encode_prompt(item)) for item in some]),
            new_tokens=config.sampling.max_new_tokens,
            sampling_rows=config.sampling_batch_size,
        ), ("sampling", "scoring", "training")
    prompt = _mean([len(chat.encode_prompt(item.prompt)) for item in some])
    if isinstance(config, RewardConfig):
        texts = [side.content for item in some for side in (item.chosen, item.rejected)]
        new = _mean([len(chat.encode_completion(text)) for text in texts])
        job = Job(**shared, trained_roles=1, batch=2 * config.batch_size, prompt_tokens=prompt, new_tokens=new)
        return job, ("scoring", "training")
    new = _mean([len(chat.encode_completion(item.completion.content)) for item in some])
    rows = config.batch_size
    if config.packing:
        # Several demonstrations stand in one row.
        room = max(1, PACKED_ROW // (prompt + new))
        rows, prompt, new = -(-rows // room), room * prompt, room * new
    return Job(**shared, trained_roles=1, batch=rows, prompt_tokens=prompt, new_tokens=new), ("training",)


def _mean(lengths: Sequence[int]) -> int:
    return max(1, round(sum(lengths) / max(1, len(lengths))))


def _sizes_of_started_run(out: Path) -> "dict[Phase, int] | None":
    from harken.artifacts import read_json

    path = out / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)["config"]
    sizes: dict[Phase, int] = {
        "scoring": config["compute"]["scoring_tokens"],
        "training": config["compute"]["microbatch_tokens"],
    }
    if "sampling_batch_size" in config:
        sizes["sampling"] = config["sampling_batch_size"]
    return sizes


def _with_sizes(config: "TrainingConfig", sizes: "dict[Phase, int]") -> "TrainingConfig":
    compute = {name: sizes[phase] for phase, name in SIZES.items() if phase != "sampling" and phase in sizes}
    changes: dict[str, Any] = {"compute": config.compute.model_copy(update=compute)}
    if "sampling" in sizes:
        changes["sampling_batch_size"] = sizes["sampling"]
    return config.model_copy(update=changes)


def _changes(config: "TrainingConfig", sizes: "dict[Phase, int]") -> dict[str, tuple[int, int]]:
    """Return name -> (old, new) of the sizes that differ from the settings."""
    changes: dict[str, tuple[int, int]] = {}
    for phase, new in sizes.items():
        name = "sampling_batch_size" if phase == "sampling" else f"compute.{SIZES[phase]}"
        old = getattr(config if phase == "sampling" else config.compute, name.rpartition(".")[2])
        if old != new:
            changes[name] = (old, new)
    return changes

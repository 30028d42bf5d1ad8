"""Tensors and settings on disk: checkpoints to resume from, models to use elsewhere. Safetensors and JSON only."""

import contextlib
import os
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harken.artifacts import read_json, storage_errors, write_json
from harken.errors import DataError
from harken.lm.trunk import Trunk


class Learner(Protocol):
    """What a role learns with, and its memory."""

    def state(self) -> dict[str, Tensor]:
        """Return the memory as named CPU tensors."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        ...


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to one safetensors file."""
    with _write_errors(path):
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def publish_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to one safetensors file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_tensors(temporary, tensors)
    with storage_errors(path):
        os.replace(temporary, path)


@contextlib.contextmanager
def _write_errors(path: Path) -> Generator[None]:
    """Turn a failed write into a `StorageError`; safetensors tells of a full disk in an error of its own."""
    with storage_errors(path):
        try:
            yield
        except SafetensorError as error:
            code = re.search(r"\(os error (\d+)\)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def save_training(folder: Path, trunk: Trunk, learners: Mapping[str, Learner], state: dict[str, Any]) -> None:
    """Write roles, their optimizers, and the loop's own numbers into a checkpoint folder."""
    for role, learner in learners.items():
        save_tensors(folder / f"{role}.safetensors", trunk.state(role))
        save_tensors(folder / f"{role}.optimizer.safetensors", learner.state())
    write_json(folder / "state.json", state)


def load_training(folder: Path, trunk: Trunk, learners: Mapping[str, Learner]) -> dict[str, Any]:
    """Set roles and optimizers from a checkpoint folder and return the loop's own numbers."""
    for role, learner in learners.items():
        trunk.load_state(role, load_tensors(folder / f"{role}.safetensors"))
        learner.load_state(load_tensors(folder / f"{role}.optimizer.safetensors"))
    return read_json(folder / "state.json")


def save_model(folder: Path, trunk: Trunk, role: str | None) -> None:
    """Write a role as a plain Hugging Face folder: adapters merged, tokenizer and chat template with it.

    Its generation config names every stop token, so that other programs stop where Harken does.
    """
    network = trunk.network(role)
    generation: Any = network.generation_config
    if generation is not None:
        generation.eos_token_id = sorted(trunk.chat.stop_ids)
    with _write_errors(folder):
        network.save_pretrained(folder, state_dict=trunk.merged_weights(role))
        trunk.chat.tokenizer.save_pretrained(folder)


def save_adapter(folder: Path, trunk: Trunk, role: str, base: str) -> None:
    """Write a role's adapters in PEFT's format, so that they open there and in `load_model`."""
    lora = trunk.roles[role].lora
    assert lora is not None, f"role {role!r} has no adapters"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.weight": value
        for name, value in trunk.state(role).items()
        if not name.startswith("head.")
    }
    save_tensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": trunk.has_transposed_layers,
        "target_modules": sorted(trunk.adapted_paths(role)),
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)
    with storage_errors(folder):
        trunk.chat.tokenizer.save_pretrained(folder)

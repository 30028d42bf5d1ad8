"""A trained reward model: score any completion of any prompt, normalized so that its unit means the same everywhere."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harken.artifacts import read_json, verify, write_folder_manifest, write_json
from harken.config import ComputeConfig, LoraConfig
from harken.errors import DataError
from harken.lm.batch import Tokens, pad
from harken.lm.chat import Chat
from harken.lm.checkpoint import load_tensors, save_adapter, save_model, save_tensors
from harken.lm.forward import by_microbatch, sequence_scores
from harken.lm.load import Notify, ignore, load_model
from harken.lm.trunk import Trunk
from harken.records import Completion, Prompt

ROLE = "reward"


class RewardModel:
    """A role with a scalar head on a base, callable as a reward.

    It reads text, not token ids: a completion is rendered and encoded as in reward training, so any policy with any
    tokenizer can be scored. Every completion is closed by the end token, also one that was cut off: in training the
    score was read there, and anywhere else it means nothing (PPO found that out, and stopped stopping). Being cut off
    is punished on its own, by PPO's stop penalty.
    """

    def __init__(self, trunk: Trunk, compute: ComputeConfig, *, role: str = ROLE, chat: Chat | None = None) -> None:
        """Use a role of a trunk that has a head; the role's gain and bias normalize its scores.

        Args:
            trunk: holds the role.
            compute: sizes of the forward passes.
            role: its name; a second reward model on the same trunk has another.
            chat: renders as in reward training; the trunk's own by default.
        """
        self.trunk = trunk
        self.role = role
        self.chat = chat or trunk.chat
        self.compute = compute

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Return one normalized score per completion."""
        sequences = [
            self.encode(prompt, completion.message.content)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        own = self.trunk.roles[self.role]
        return (own.gain * self.score_tokens(sequences) + own.bias).tolist()

    def encode(self, prompt: Prompt, completion: str) -> Tokens:
        """Return the token ids of a prompt and its completion."""
        limit = self.trunk.context_length
        tokens = Tokens(
            self.chat.encode_prompt(prompt, max_length=limit),
            self.chat.encode_completion(completion),
        )
        if tokens.size > limit:
            raise DataError(
                f"prompt {prompt.id!r}: prompt and completion have {tokens.size} tokens, the reward model's context "
                f"has {limit}; shorten one of them"
            )
        return tokens

    @torch.no_grad()
    def score_tokens(self, sequences: Sequence[Tokens]) -> torch.Tensor:
        """Return (B,) fp32 raw scores, before gain and bias, on the CPU."""
        batch = pad(sequences, self.trunk.device)
        return by_microbatch(
            batch,
            lambda part: sequence_scores(self.trunk, self.role, part),
            max_tokens=self.compute.scoring_tokens,
            padded=self.trunk.computes_padding,
        ).cpu()

    def save(self, folder: Path, info: dict[str, Any], parents: dict[str, str]) -> None:
        """Write adapter (or full weights), head and normalization; the folder is what `--reward` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        role = self.trunk.roles[self.role]
        base = Path(self.trunk.source)
        settings: dict[str, Any] = {
            "gain": role.gain,
            "bias": role.bias,
            "base": self.trunk.source,
            # A folder is found again when run and base move together.
            "base_relative": os.path.relpath(base, folder) if base.is_dir() else None,
            "chat_template": self.chat.tokenizer.chat_template,
            "tune": None if role.lora is None else role.lora.model_dump(),
            **info,
        }
        if role.lora is not None:
            save_adapter(folder, self.trunk, self.role, self.trunk.source)
        else:
            save_model(folder, self.trunk, self.role)
        head = self.trunk.state(self.role)
        save_tensors(folder / "head.safetensors", {name: head[name] for name in ("head.weight", "head.bias")})
        write_json(folder / "reward.json", settings)
        write_folder_manifest(folder, "reward_model", parents=parents)


class StoredRewardModel:
    """A reward model folder, loaded on first use: onto a base in memory where that is its own, else with its own."""

    def __init__(self, folder: Path, *, compute: ComputeConfig | None = None, notify: Notify = ignore) -> None:
        """Check the folder; nothing heavy is read yet.

        Args:
            folder: made by `harken reward`.
            compute: device and precision, where a base has to be loaded.
            notify: told in one line what was assumed.

        Raises:
            DataError: not a reward model folder, or changed since it was written.
        """
        if not (folder / "reward.json").exists():
            raise DataError(f"{folder}: no reward.json in it, so not a reward model; make one with `harken reward`")
        verify(folder)
        self.folder = folder
        self._compute = compute or ComputeConfig()
        self._notify = notify
        self._loaded: RewardModel | None = None

    def attach(self, trunk: Trunk) -> None:
        """Load onto a trunk in memory, if it holds the base that the reward model was trained on."""
        settings = read_json(self.folder / "reward.json")
        if settings["tune"] is not None and _same_place(trunk.source, _find_base(self.folder, settings)):
            self._loaded = self._load(trunk)

    def doubt(self) -> str | None:
        """Say how often it was right on held-out pairs, if the interval of that reaches down to a coin's 50 %."""
        found = read_json(self.folder / "reward.json").get("heldout_accuracy")
        if found is None or found["low"] is None or found["low"] > 0.5:
            return None
        return (
            f"{self.folder}: right in {found['value']:.0%} of {found['n']} held-out pairs, 95 % interval "
            f"{found['low']:.0%} to {found['high']:.0%}, which a coin's 50 % is not below"
        )

    def model(self) -> RewardModel:
        """Return the reward model, loaded now if it was not yet.

        Raises:
            DataError: damaged, or its base is gone.
        """
        self._loaded = self._loaded or self._load(None)
        return self._loaded

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Return one normalized score per completion."""
        return self.model()(prompts, completions)

    def _load(self, trunk: Trunk | None) -> RewardModel:
        settings = read_json(self.folder / "reward.json")
        tensors = load_tensors(self.folder / "head.safetensors")
        tune = settings["tune"]
        if trunk is None:
            base = str(self.folder) if tune is None else _find_base(self.folder, settings)
            trunk = Trunk(load_model(base, compute=self._compute, notify=self._notify))
        names = (ROLE, *(f"{ROLE}_{number}" for number in range(2, 100)))
        role = next(name for name in names if name not in trunk.roles)
        lora = None if tune is None else LoraConfig.model_validate(tune)
        trunk.add_role(role, lora, seed=0, head=True, reads_apart=True)
        if tune is not None:
            adapter = load_tensors(self.folder / "adapter_model.safetensors")
            tensors |= {
                name.removeprefix("base_model.model.").removesuffix(".weight"): value for name, value in adapter.items()
            }
        trunk.load_state(role, tensors)
        trunk.roles[role].gain, trunk.roles[role].bias = settings["gain"], settings["bias"]
        chat = _chat_of_training(trunk.chat, settings["chat_template"])
        return RewardModel(trunk, self._compute, role=role, chat=chat)


def _same_place(first: str, second: str) -> bool:
    return Path(first).resolve() == Path(second).resolve()


def _chat_of_training(chat: Chat, template: str) -> Chat:
    """Return a rendering with the template of reward training; the base, or who shares it, may use another."""
    if chat.tokenizer.chat_template == template:
        return chat
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = template
    return Chat(tokenizer)


def _find_base(folder: Path, settings: dict[str, Any]) -> str:
    relative = settings["base_relative"]
    if relative is not None:
        for candidate in (folder / relative, Path(settings["base"])):
            if candidate.is_dir():
                return str(candidate)
        raise DataError(
            f"{folder}: its base model {settings['base']!r} is gone; put it back there or beside the run folder"
        )
    return settings["base"]

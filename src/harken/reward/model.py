"""A trained reward model: score any completion of any prompt, normalized so that its unit means the same everywhere."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harken.artifacts import read_json, verify, write_folder_manifest, write_json
from harken.config import ChatConfig, ComputeConfig, LoraConfig
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
    tokenizer can be scored. A completion that stopped is closed by the end token; one that was cut off is not.
    """

    def __init__(
        self, trunk: Trunk, compute: ComputeConfig, *, chat: Chat | None = None, gain: float = 1.0, bias: float = 0.0
    ) -> None:
        """Use the role `reward` of a trunk; `gain * score + bias` is what comes out.

        Args:
            trunk: holds the role `reward`.
            compute: sizes of the forward passes.
            chat: renders as in reward training; the trunk's own by default.
            gain: spread of normalized scores over that of raw ones.
            bias: added after that.
        """
        self.trunk = trunk
        self.chat = chat or trunk.chat
        self.compute = compute
        self.gain, self.bias = gain, bias

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Return one normalized score per completion."""
        sequences = [
            self.encode(prompt, completion.message.content, stopped=completion.finish_reason != "length")
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return (self.gain * self.score_tokens(sequences) + self.bias).tolist()

    def encode(self, prompt: Prompt, completion: str, *, stopped: bool = True) -> Tokens:
        """Return the token ids of a prompt and its completion."""
        limit = self.trunk.context_length
        tokens = Tokens(
            self.chat.encode_prompt(prompt, max_length=limit),
            self.chat.encode_completion(completion, stopped=stopped),
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
            lambda part: sequence_scores(self.trunk, ROLE, part),
            max_tokens=4 * self.compute.microbatch_tokens,
        ).cpu()

    def save(self, folder: Path, info: dict[str, Any], parents: dict[str, str]) -> None:
        """Write adapter (or full weights), head and normalization; the folder is what `--reward` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        role = self.trunk.roles[ROLE]
        base = Path(self.trunk.source)
        settings: dict[str, Any] = {
            "gain": self.gain,
            "bias": self.bias,
            "base": self.trunk.source,
            # A folder is found again when run and base move together.
            "base_relative": os.path.relpath(base, folder) if base.is_dir() else None,
            "chat_template": self.chat.tokenizer.chat_template,
            "tune": None if role.lora is None else role.lora.model_dump(),
            **info,
        }
        if role.lora is not None:
            save_adapter(folder, self.trunk, ROLE, self.trunk.source)
        else:
            save_model(folder, self.trunk, ROLE)
        head = self.trunk.state(ROLE)
        save_tensors(folder / "head.safetensors", {name: head[name] for name in ("head.weight", "head.bias")})
        write_json(folder / "reward.json", settings)
        write_folder_manifest(folder, "reward_model", parents=parents)


def load_reward_model(
    folder: Path,
    *,
    compute: ComputeConfig | None = None,
    trunk: Trunk | None = None,
    notify: Notify = ignore,
) -> RewardModel:
    """Load a reward model, onto a trunk that is already in memory where its base is the same.

    Args:
        folder: made by `harken reward`.
        compute: device and precision, where a base has to be loaded.
        trunk: a base in memory; used when the reward model was trained on it.
        notify: told in one line what was assumed.

    Raises:
        DataError: not a reward model folder, damaged, or its base is gone.
    """
    if not (folder / "reward.json").exists():
        raise DataError(f"{folder}: no reward.json in it, so not a reward model; make one with `harken reward`")
    verify(folder)
    settings = read_json(folder / "reward.json")
    compute = compute or ComputeConfig()
    head = load_tensors(folder / "head.safetensors")
    if settings["tune"] is None:
        own = Trunk(load_model(folder, compute=compute, notify=notify))
        own.add_role(ROLE, None, seed=0, head=True)
        own.load_state(ROLE, head)
        return RewardModel(own, compute, gain=settings["gain"], bias=settings["bias"])
    base = _find_base(folder, settings)
    if trunk is None or Path(trunk.source).resolve() != Path(base).resolve():
        trunk = Trunk(load_model(base, compute=compute, chat=ChatConfig(), notify=notify))
    trunk.add_role(ROLE, LoraConfig.model_validate(settings["tune"]), seed=0, head=True)
    adapter = load_tensors(folder / "adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model.").removesuffix(".weight"): value for name, value in adapter.items()}
    trunk.load_state(ROLE, {**tensors, **head})
    chat = _chat_of_training(trunk.chat, settings["chat_template"])
    return RewardModel(trunk, compute, chat=chat, gain=settings["gain"], bias=settings["bias"])


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

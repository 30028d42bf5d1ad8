"""Load any causal language model: Hugging Face id, folder, GGUF file, PEFT adapter folder, or `smollm2`."""

import contextlib
import io
import shutil
import socket
import struct
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from huggingface_hub.constants import ENDPOINT
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from harken import assets
from harken.artifacts import read_json, storage_errors
from harken.config import (
    ChatConfig,
    ComputeConfig,
    DpoConfig,
    IlqlConfig,
    OnlineDpoConfig,
    PpoConfig,
    RewardConfig,
    RftConfig,
    SftConfig,
)
from harken.errors import DataError, UsageError
from harken.lm.attention import use_short_attention
from harken.lm.chat import Chat
from harken.lm.machine import matrix_rate
from harken.runs import Run

Notify = Callable[[str], None]
StageConfigT = TypeVar(
    "StageConfigT", SftConfig, RewardConfig, DpoConfig, OnlineDpoConfig, PpoConfig, IlqlConfig, RftConfig
)

# A damaged file shows as any of these, by file and format.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    struct.error,
)

# Conversion and loading print their own bars and warnings; ours say the same in one line.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with its tokenizer and chat rendering."""

    model: PreTrainedModel
    chat: Chat
    source: str
    """What `load_model` was asked for."""

    @property
    def context_length(self) -> int:
        """Most tokens a sequence may have."""
        config: Any = self.model.config
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def ignore(message: str) -> None:
    """Take a notice and do nothing, where nobody wants to be told."""
    del message


def load_model(
    name: str | Path,
    *,
    compute: ComputeConfig | None = None,
    chat: ChatConfig | None = None,
    notify: Notify = ignore,
) -> LoadedModel:
    """Load model and tokenizer.

    Args:
        name: `smollm2`, a folder (plain, or with a PEFT adapter), a `.gguf` file, or a Hugging Face id.
        compute: device and precision.
        chat: which template renders conversations.
        notify: called with one line for people when something takes long or was assumed.

    Raises:
        DataError: no such model, or it cannot be read; the message says what was tried.
    """
    compute, chat = compute or ComputeConfig(), chat or ChatConfig()
    device = pick_device(compute.device)
    dtype = pick_dtype(compute.dtype, device)
    model, tokenizer = _read(str(name), dtype, notify)
    model.eval()
    model.to(device)  # pyright: ignore[reportArgumentType]
    use_short_attention(model)
    generation: Any = model.generation_config
    stops = generation.eos_token_id if generation is not None else None
    extra = tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,)
    rendering = Chat(tokenizer, chat.template, extra_stop_ids=extra, stop=chat.stop)
    if rendering.note:
        notify(f"{name}: {rendering.note}")
    return LoadedModel(model, rendering, str(name))


def read_model_config(name: str, notify: Notify = ignore) -> dict[str, Any]:
    """Return a model's config as a dictionary, without reading its weights.

    Raises:
        DataError: no such model, or its config cannot be read.
    """
    folder, gguf = _locate(name, notify)
    options = _options(folder, gguf)
    with _unreadable(folder):
        config: Any = AutoConfig.from_pretrained(folder, **options)
    return config.get_text_config().to_dict()


def load_chat(name: str, *, chat: ChatConfig | None = None, notify: Notify = ignore) -> Chat:
    """Return a model's tokenizer with its chat template, without reading its weights.

    Stop tokens that only the model's generation config names are not known here.

    Raises:
        DataError: no such model, or its tokenizer cannot be read.
    """
    rendering = Chat(_tokenizer(*_locate(name, notify)), (chat or ChatConfig()).template)
    if rendering.note:
        notify(f"{name}: {rendering.note}")
    return rendering


def _locate(name: str, notify: Notify) -> tuple[str, str | None]:
    """Return (folder or hub id, GGUF file name or None)."""
    if name == "smollm2":
        return str(_converted(assets.fetch("smollm2", notify), notify)), None
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise DataError(f"{path}: no such GGUF file; check the path")
        return str(path.parent), path.name
    if path.is_dir() and not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
        raise DataError(f"{path}: no config.json or adapter_config.json in it, so not a model folder")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if not path.exists() and looks_local:
        raise DataError(f"{name}: no such folder; give a folder, a Hugging Face id, or smollm2")
    return name, None


def _read(name: str, dtype: torch.dtype, notify: Notify) -> tuple[PreTrainedModel, Any]:
    folder, gguf = _locate(name, notify)
    adapter = Path(folder) / "adapter_config.json"
    if gguf or not adapter.exists():
        return _weights(folder, gguf, dtype), _tokenizer(folder, gguf)
    base = read_json(adapter).get("base_model_name_or_path")
    if not base:
        raise DataError(f"{adapter}: no base_model_name_or_path in it; set it to the model that the adapter changes")
    base_folder, base_gguf = _locate(str(base), notify)
    # PEFT folders from elsewhere often come without a tokenizer; it is the base's then.
    own_tokenizer = (Path(folder) / "tokenizer_config.json").exists()
    tokenizer = _tokenizer(folder, None) if own_tokenizer else _tokenizer(base_folder, base_gguf)
    # Merged in fp32: a bf16 weight would swallow most of a small adapter's change.
    model = _weights(base_folder, base_gguf, torch.float32)
    with _unreadable(folder):
        merged: Any = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return merged.to(dtype), tokenizer


def _weights(folder: str, gguf: str | None, dtype: torch.dtype) -> PreTrainedModel:
    options = _options(folder, gguf)
    if "local_files_only" in options:  # transformers does not pass it on when it looks for adapters
        options["adapter_kwargs"] = {"local_files_only": True}
    with _unreadable(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    model, info = loaded
    # transformers would go on with random weights in these places.
    odd = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
    if odd:
        raise DataError(
            f"model {folder!r} could not be loaded: config.json asks for {len(odd)} weights that the files lack or "
            f"have in another shape ({', '.join(odd[:4])}); use the config.json that belongs to these weights"
        )
    model.generation_config = _writable(model.generation_config)
    return model


def _writable(generation: GenerationConfig | None) -> GenerationConfig | None:
    """Return a generation config that `save_pretrained` takes: it refuses some that models are published with."""
    if generation is None:
        return None
    try:
        generation.validate(strict=True)
    except ValueError:
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{name: getattr(generation, name) for name in tokens})
    return generation


def _tokenizer(folder: str, gguf: str | None) -> Any:
    options = _options(folder, gguf)
    with _unreadable(folder):
        return AutoTokenizer.from_pretrained(folder, **options)


def _options(folder: str, gguf: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    if not Path(folder).is_dir() and _hub_is_out_of_reach():
        options["local_files_only"] = True  # else it is tried again and again for most of a minute
    return options


def _hub_is_out_of_reach() -> bool:
    """Return whether the Hugging Face hub's name cannot be resolved; behind a proxy it need not be."""
    if urllib.request.getproxies():
        return False
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(ENDPOINT).hostname, 443)
    except socket.gaierror:
        return True
    return False


@contextlib.contextmanager
def _unreadable(folder: str) -> Generator[None]:
    """Turn what the libraries raise on a missing or damaged model into one line that says what to do."""
    try:
        yield
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
        raise DataError(
            f"model {folder!r} could not be loaded: {reason}; give a folder with config.json and safetensors, a "
            "Hugging Face id that this machine can reach, a .gguf file, or `smollm2`"
        ) from error


def _converted(gguf: Path, notify: Notify) -> Path:
    """Return a plain safetensors folder made once from a GGUF file, beside it in the cache."""
    folder = gguf.with_suffix(".converted")
    if (folder / "config.json").exists():
        return folder
    notify("converting smollm2 from GGUF to safetensors, once (about 20 s)")
    # The GGUF reader draws a bar of its own, also where there is no terminal.
    with contextlib.redirect_stderr(io.StringIO()):
        model, tokenizer = _read(str(gguf), torch.float32, notify)
    # The config of a model read from GGUF says "quantized", which blocks saving, though the weights are plain.
    config: Any = model.config
    del config.quantization_config
    plain: Any = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    with storage_errors(folder):
        temporary = Path(tempfile.mkdtemp(dir=gguf.parent, prefix=".converting-"))
        plain.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if not folder.exists():
            temporary.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def pick_device(name: str) -> torch.device:
    """Return the device of a config value; `auto` is the GPU when there is one.

    Raises:
        UsageError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"compute.device={name}: not available here; use auto or cpu") from error
    return device


def pick_dtype(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """Return the type of weights and activations; `auto` measures, once a process, whether bf16 pays on this machine.

    It is taken where its matrix products are at least 1.3 times faster.
    """
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    rates = {dtype: matrix_rate(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if rates[torch.bfloat16] > 1.3 * rates[torch.float32] else torch.float32


def with_settled_dtype(config: StageConfigT, run: Run) -> StageConfigT:
    """Return a stage's config with the type that its run started with, so that a resumed run computes as before."""
    compute = config.compute
    if compute.dtype != "auto":
        return config
    device = pick_device(compute.device)
    dtype = run.settle("dtype", lambda: str(pick_dtype("auto", device)).removeprefix("torch."))
    return config.model_copy(update={"compute": compute.model_copy(update={"dtype": dtype})})

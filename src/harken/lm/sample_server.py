"""Completions from a vLLM server: token ids in and out, weights through a folder that both sides see."""

import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from harken.artifacts import storage_errors
from harken.config import VllmServerConfig
from harken.errors import SamplerError
from harken.lm.checkpoint import save_adapter, save_tensors
from harken.lm.foreign import checked_sampled, request_fields
from harken.lm.sample import Sampled
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings

NEEDED = {
    "/v1/load_lora_adapter": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora",
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
    "/reset_prefix_cache": "VLLM_SERVER_DEV_MODE=1",
}
"""What a server must be started with to have these endpoints."""


class VllmServerSampler:
    """Draws through the completions endpoint of a vLLM server."""

    def __init__(self, trunk: Trunk, config: VllmServerConfig) -> None:
        """Ask the server for the model's name and make the folder for the weights.

        Raises:
            SamplerError: no server there, or it has no such model.
            StorageError: the folder cannot be made.
        """
        self._trunk = trunk
        self._config = config
        self._stop_ids = trunk.chat.stop_ids
        listed = self._ask("/v1/models", None)
        names = [str(entry["id"]) for entry in (listed or {}).get("data", [])]
        if not names or (config.model and config.model not in names):
            raise SamplerError(
                f"{config.url} has no model {config.model!r}, it has: {', '.join(names) or 'none'}; set sampler.model"
            )
        self._base = config.model or names[0]
        with storage_errors(Path(config.folder or tempfile.gettempdir())):
            if config.folder:
                Path(config.folder).mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="harken-sampler-", dir=config.folder or None)).absolute()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._adapter = ""
        self._adapters = 0
        self._holds_base = True  # as it was started

    def __call__(
        self,
        role: str | None,
        prompts: Sequence[list[int]],
        settings: SamplingSettings,
        *,
        seeds: Sequence[int],
        n: int = 1,
    ) -> list[Sampled]:
        """Hand the role over and draw, one request a completion, each with its own seed.

        Raises:
            SamplerError: the server cannot be reached, refuses, or gives back what cannot be used.
        """
        assert len(seeds) == len(prompts) * n, "one seed for each completion"
        shared = {
            "model": self._hand_over(role),
            "return_token_ids": True,
            **request_fields(settings, self._stop_ids),
        }
        bodies = [{**shared, "prompt": prompts[row // n], "seed": seed} for row, seed in enumerate(seeds)]
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            return list(pool.map(self._draw, bodies))

    def _hand_over(self, role: str | None) -> str:
        """Give the server a role's adapters or weights as they are now; return the name to ask for."""
        own = None if role is None else self._trunk.roles[role]
        if own is None or own.lora is not None:
            if not self._holds_base:
                self._reload(None)
        else:
            self._reload(role)
        if role is None or own is None or own.lora is None:
            return self._base
        # A new name each time: the server's cache of keys and values goes by names.
        self._adapters += 1
        name, folder = f"{self._folder.name}-{self._adapters}", self._folder / f"adapter-{self._adapters}"
        save_adapter(folder, self._trunk, role, self._base)
        self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if self._adapter:
            self._ask("/v1/unload_lora_adapter", {"lora_name": self._adapter})
            shutil.rmtree(self._folder / f"adapter-{self._adapters - 1}", ignore_errors=True)
        self._adapter = name
        return name

    def _reload(self, role: str | None) -> None:
        """Let the server read all weights of a role (None: the base) anew."""
        folder = self._folder / "weights"
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        # All names, those of tied weights too (a copy, since a safetensors file shares nothing): vLLM 0.32 keeps the
        # old output layer of a tied model when only the embeddings are in the file, as they are in a model folder.
        save_tensors(folder / "model.safetensors", _without_sharing(self._trunk.merged_weights(role)))
        self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        # Keys and values computed with the old weights must not be used with the new ones.
        done = self._ask("/reset_prefix_cache", {})
        if isinstance(done, dict) and done.get("success") is False:
            raise SamplerError(
                f"{self._config.url} could not drop its prefix cache after new weights: other requests use the server; "
                "give the run a server of its own"
            )
        self._holds_base = role is None

    def _draw(self, body: dict[str, Any]) -> Sampled:
        answer = self._ask("/v1/completions", body)
        try:
            choice = answer["choices"][0]
            token_ids = [int(token) for token in choice["token_ids"]]
            logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SamplerError(
                f"{self._config.url} answered without token ids and log-probabilities ({type(error).__name__}: "
                f"{error}); it must be a vLLM server that knows `return_token_ids`"
            ) from error
        return checked_sampled(token_ids, logprobs, choice.get("finish_reason"), self._stop_ids)

    def _ask(self, path: str, body: object) -> Any:
        """POST a JSON body, or GET where it is None; return the answer, None when it is no JSON."""
        address = self._config.url.rstrip("/") + path
        headers = {"Content-Type": "application/json"}
        key = os.environ.get("VLLM_API_KEY")  # where the server was started with one
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(address, None if body is None else json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self._config.timeout_s) as answer:
                is_json = "json" in (answer.headers.get("Content-Type") or "")
                return json.loads(answer.read()) if is_json else None
        except urllib.error.HTTPError as error:
            found = error.read().decode(errors="replace").strip()[:300]
            remedy = f"; start the server with {NEEDED[path]}" if error.code == 404 and path in NEEDED else ""
            raise SamplerError(f"{address}: HTTP {error.code}: {found}{remedy}") from error
        except (OSError, ValueError) as error:
            raise SamplerError(
                f"{address}: {type(error).__name__}: {error}; is `vllm serve` running there? See sampler.url"
            ) from error


def _without_sharing(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a copy in place of each that has the memory of an earlier one."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart

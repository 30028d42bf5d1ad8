"""Completions from vLLM's engine in this process. The only module that imports vllm.

The engine has its own copy of the base. It starts with random weights and is handed those in memory; before each draw
it takes the role's adapters, or all its weights under full fine-tuning.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Read when vllm is imported: no process of its own, no reports of use to anybody, no page of notices.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]
from vllm.exceptions import VLLMError  # pyright: ignore[reportMissingImports]
from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

from harken.config import VllmConfig
from harken.errors import SamplerError
from harken.lm.checkpoint import save_adapter
from harken.lm.foreign import checked_sampled, request_fields
from harken.lm.sample import Sampled
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM makes room for."""

ENGINE_ERRORS = (VLLMError, ValueError, RuntimeError, OSError)


class VllmSampler:
    """Draws with vLLM in this process."""

    def __init__(self, trunk: Trunk, config: VllmConfig, *, batch_size: int, max_length: int) -> None:
        """Start the engine.

        Args:
            trunk: base and roles; the engine makes room for the largest rank among them.
            config: of the engine.
            batch_size: completions drawn at the same time.
            max_length: longest prompt plus completion, tokens.

        Raises:
            SamplerError: it does not start; the message has vLLM's reason.
        """
        self._trunk = trunk
        self._stop_ids = trunk.chat.stop_ids
        self._folder = Path(tempfile.mkdtemp(prefix="harken-sampler-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._adapters = 0
        self._holds_base = False
        rank = max((role.lora.rank for role in trunk.roles.values() if role.lora is not None), default=0)
        lora: dict[str, Any] = {}
        if rank:
            room = min((size for size in RANKS if size >= rank), default=rank)
            lora = {"enable_lora": True, "max_lora_rank": room, "max_loras": 1, "max_cpu_loras": 1}
        trunk.model.config.save_pretrained(self._folder / "model")
        self._engine = _start(
            model=str(self._folder / "model"),
            load_format="dummy",  # weights come from memory, see `_load`
            skip_tokenizer_init=True,
            generation_config="vllm",  # the engine's neutral defaults, not the model's
            logprobs_mode="processed_logprobs",  # of the distribution that is drawn from, after the temperature
            dtype=str(trunk.dtype).removeprefix("torch."),
            kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30),
            max_model_len=max_length,
            max_num_seqs=batch_size,
            enforce_eager=not config.compile,
            disable_log_stats=True,
            **lora,
        )
        weakref.finalize(self, _stop, self._engine)

    def __call__(
        self,
        role: str | None,
        prompts: Sequence[list[int]],
        settings: SamplingSettings,
        *,
        seeds: Sequence[int],
        n: int = 1,
    ) -> list[Sampled]:
        """Hand the role over and draw, each completion with its own seed.

        Raises:
            SamplerError: vLLM refuses the adapters, or ends a completion for another reason than stop or length.
        """
        assert len(seeds) == len(prompts) * n, "one seed for each completion"
        adapter = self._hand_over(role)
        fields = request_fields(settings, self._stop_ids)
        # The n completions of a prompt share its prefill through the prefix cache.
        asked = [{"prompt_token_ids": list(prompts[row // n])} for row in range(len(seeds))]
        params = [SamplingParams(seed=seed, detokenize=False, **fields) for seed in seeds]
        try:
            answers = self._engine.generate(asked, params, use_tqdm=False, lora_request=adapter)
        except ENGINE_ERRORS as error:
            raise SamplerError(f"vLLM could not draw: {type(error).__name__}: {error}") from error
        return [self._sampled(answer.outputs[0]) for answer in answers]

    def _hand_over(self, role: str | None) -> Any:
        """Give the engine a role's adapters or weights as they are now; return the request's adapter, if any."""
        own = None if role is None else self._trunk.roles[role]
        if role is None or own is None or own.lora is None:
            if own is not None or not self._holds_base:
                self._load(role)
            return None
        if not self._holds_base:
            self._load(None)
        # A new number and name each time: the engine's caches of adapters, keys and values go by them.
        self._adapters += 1
        folder = self._folder / "adapter"
        save_adapter(folder, self._trunk, role, self._trunk.source)
        request = LoRARequest(f"update-{self._adapters}", self._adapters, str(folder))
        try:
            self._engine.llm_engine.add_lora(request)
        except ENGINE_ERRORS as error:
            raise SamplerError(
                f"vLLM does not take the adapters of {role!r}: {type(error).__name__}: {error}; "
                "set tune.kind = 'full' or sampler.kind = 'own'"
            ) from error
        return request

    def _load(self, role: str | None) -> None:
        """Put all weights of a role (None: the base) into the engine, and drop what it computed with the old ones."""
        weights = self._trunk.merged_weights(role).items()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._engine.reset_prefix_cache()
        self._holds_base = role is None

    def _sampled(self, output: Any) -> Sampled:
        token_ids = list(output.token_ids)
        logprobs = [at[token].logprob for token, at in zip(token_ids, output.logprobs, strict=True)]
        return checked_sampled(token_ids, logprobs, output.finish_reason, self._stop_ids)


def _start(**options: Any) -> Any:
    """Start an engine and undo what it changes in torch for everybody."""
    set_num_threads, random_state = torch.set_num_threads, torch.random.get_rng_state()
    try:
        return LLM(**options)
    except ENGINE_ERRORS as error:
        cleanup_dist_env_and_memory()
        raise SamplerError(
            f"vLLM did not start: {type(error).__name__}: {error} Its memory is set by sampler.kv_cache_gib; a model "
            "that vLLM does not know is drawn from with sampler.kind = 'own'"
        ) from error
    finally:
        torch.set_num_threads = set_num_threads
        torch.random.set_rng_state(random_state)


def _stop(engine: Any) -> None:
    """Give the engine's memory and its process group back."""
    engine.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()

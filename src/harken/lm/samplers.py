"""Who draws the completions: Harken's own sampler, vLLM in this process, or a vLLM server, behind one protocol."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harken.config import OwnSamplerConfig, SamplerConfig, VllmConfig, VllmServerConfig
from harken.errors import UsageError
from harken.lm.sample import Sampled, sample
from harken.lm.sample_server import VllmServerSampler
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings


class Sampler(Protocol):
    """Draws completions of a role as it is at the moment of the call; a foreign engine is handed the weights first."""

    def __call__(
        self,
        role: str | None,
        prompts: Sequence[list[int]],
        settings: SamplingSettings,
        *,
        seeds: Sequence[int],
        n: int = 1,
    ) -> list[Sampled]:
        """Return `len(prompts) * n` completions, prompt by prompt, as `harken.lm.sample.sample` does."""
        ...


@dataclass(frozen=True)
class OwnSampler:
    """`harken.lm.sample.sample` on a trunk."""

    trunk: Trunk
    batch_size: int
    """Completions drawn at the same time."""
    with_entropy: bool = False
    """Also tell the entropy of each token's distribution."""

    def __call__(
        self,
        role: str | None,
        prompts: Sequence[list[int]],
        settings: SamplingSettings,
        *,
        seeds: Sequence[int],
        n: int = 1,
    ) -> list[Sampled]:
        """Draw with the trunk's own weights; nothing has to be handed over."""
        return sample(
            self.trunk,
            role,
            prompts,
            settings,
            seeds=seeds,
            n=n,
            batch_size=self.batch_size,
            with_entropy=self.with_entropy,
        )


def open_sampler(trunk: Trunk, config: SamplerConfig, *, batch_size: int, max_length: int) -> Sampler:
    """Return the sampler that the settings name, ready to draw; it is shut down when nobody holds it any more.

    Args:
        trunk: its roles are complete: an engine makes room for the adapters it finds.
        config: which sampler.
        batch_size: completions drawn at the same time.
        max_length: longest prompt plus completion, tokens.

    Raises:
        UsageError: the package vllm is not installed.
        SamplerError: the engine does not start, or the server does not answer.
    """
    match config:
        case OwnSamplerConfig():
            return OwnSampler(trunk, batch_size, with_entropy=not config.reread)
        case VllmConfig():
            if importlib.util.find_spec("vllm") is None:
                raise UsageError(
                    "sampler.kind = 'vllm' needs the package vllm: pip install 'harken[vllm]' (without a GPU: see "
                    "docs/vllm.md), or set sampler.kind = 'own'"
                )
            # By name, at the first use: importing vllm takes seconds and changes torch for the whole process.
            module: Any = importlib.import_module("harken.lm.sample_vllm")
            return module.VllmSampler(trunk, config, batch_size=batch_size, max_length=max_length)
        case VllmServerConfig():
            return VllmServerSampler(trunk, config)

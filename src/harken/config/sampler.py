"""Settings of who draws the completions."""

from typing import Annotated, Literal

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import Count, Positive

Cap = Annotated[float, Field(ge=1)]


class OwnSamplerConfig(Config):
    """Harken's own sampler: the same weights and the same program that trains."""

    kind: Literal["own"] = "own"
    """Which sampler."""
    reread: bool = False
    """Read a rollout again for the policy's log-probabilities before the update, which costs a pass. Otherwise those
    that its tokens were drawn with are taken: they are what the ratio's denominator is by definition, and differ from
    what training computes by rounding (about 1e-6 nats a token in fp32, 1e-2 in bf16). The first rollout of a run is
    always read again, to compare both."""


class VllmConfig(Config):
    """vLLM's engine in this process (extra `vllm`); it takes the policy's weights or adapters before each rollout."""

    kind: Literal["vllm"] = "vllm"
    """Which sampler."""
    kv_cache_gib: Positive = 2.0
    """Memory for keys and values, GiB; the weights of the engine's own copy come on top."""
    compile: bool = False
    """Compile the model and capture CUDA graphs: a minute more to start, faster on a GPU."""
    importance_cap: Cap = 2.0
    """Largest weight min(policy / engine, cap) of a token in the policy loss."""


class VllmServerConfig(Config):
    """A vLLM server (`vllm serve`); adapters or weights go to it through a folder that it can read."""

    kind: Literal["vllm_server"] = "vllm_server"
    """Which sampler."""
    url: str = "http://localhost:8000"
    """Address of the server, without `/v1`."""
    model: str = ""
    """Name under which the server has the base model; empty: the first that it lists."""
    folder: str = ""
    """Folder under which adapters or weights are written, the same path for the server; empty: a temporary one."""
    concurrency: Count = 64
    """Requests under way at the same time."""
    timeout_s: Positive = 600.0
    """Seconds to wait for an answer."""
    importance_cap: Cap = 2.0
    """Largest weight min(policy / engine, cap) of a token in the policy loss."""


SamplerConfig = Annotated[OwnSamplerConfig | VllmConfig | VllmServerConfig, Field(discriminator="kind")]

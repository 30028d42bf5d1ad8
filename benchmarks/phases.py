"""The phases that can be compared: sizes of the work, and who does it besides Harken."""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Peer:
    """Another program for the same work, in one of the ways it can be set."""

    name: str
    script: str
    """In `benchmarks/sides`."""
    venv: str
    """`requirements-VENV.txt`."""
    dtype: str = "bfloat16"
    """Of its computation when it is measured; the proof of equal work is in float32."""
    options: dict[str, Any] = field(default_factory=dict)
    """Handed to the peer's own config."""
    weights: str = "float32"
    """Type its weights are loaded in, where the side can choose."""


@dataclass(frozen=True)
class Phase:
    """The work of one comparison."""

    name: str
    unit: str
    """What `rows` counts."""
    rows: int
    """Rows, pairs, demonstrations or prompts of one step."""
    steps: int
    """Timed steps of a run."""
    peers: dict[str, tuple[Peer, ...]]
    """Name for `--peer` -> the peer's variants; the fastest counts."""
    new_tokens: int = 64
    max_length: int = 512
    tune: str = "full"
    template: str = "auto"
    epochs: int = 1
    group: int = 1
    """Completions of each prompt, where the phase draws."""
    warmup: int = 1

    def changed(self, **values: Any) -> "Phase":
        """Return a copy with other values, those that are None left as they are."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


PLAIN = {"gradient_checkpointing": False}


def trl(script: str, venv: str) -> tuple[Peer, ...]:
    """Return TRL with its defaults (bf16 autocast over fp32 weights, recomputation), and without recomputation."""
    name = "TRL 1.12.0" if venv == "trl-ppo" else "TRL"
    return (
        Peer(f"{name}, its defaults", script, venv),
        Peer(f"{name}, no recomputation", script, venv, options=PLAIN),
    )


GENERATE = tuple(
    Peer(f"generate, {dtype}", "generate_side.py", "trl", dtype=dtype) for dtype in ("float32", "bfloat16")
)
VLLM = (Peer("vLLM, bfloat16", "vllm_side.py", "vllm"),)
TRAINERS = {"trl": trl("trl_side.py", "trl")}

PHASES = {
    phase.name: phase
    for phase in (
        Phase("sampling", "rows", 64, 1, {"generate": GENERATE, "vllm": VLLM}),
        Phase(
            "reward-lora",
            "pairs",
            32,
            6,
            {"peft": (Peer("PEFT loop, autocast, bf16 base", "peft_side.py", "trl"),)},
            tune="lora",
            template="raw",
        ),
        Phase("reward", "pairs", 8, 3, TRAINERS),
        Phase("sft", "demonstrations", 8, 4, TRAINERS),
        Phase("dpo", "pairs", 8, 3, TRAINERS),
        # TRL's PPO ignores the setting for recomputation, so there is one variant.
        Phase("ppo", "episodes", 32, 1, {"trl": trl("trl_ppo_side.py", "trl-ppo")[:1]}, tune="half", epochs=2),
        *(Phase(name, "prompts", 4, 1, TRAINERS, tune="half", group=8) for name in ("grpo", "rloo")),
    )
}

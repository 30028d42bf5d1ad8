"""How fast each phase runs on this machine, and how near that is to what the machine can do. `harken bench` prints it.

The phases are those of the loops, called as the loops call them: sampling, scoring, an optimizer step of fine-tuning,
one of a reward model. Texts are random tokens of different lengths, so padding costs what it costs in a run.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harken.config import ComputeConfig, FullConfig, LoraConfig, RewardConfig, SftConfig, Tune
from harken.lm.batch import Tokens, pad, padding_waste
from harken.lm.forward import by_microbatch, completion_logprobs
from harken.lm.kernels import find
from harken.lm.load import load_model
from harken.lm.machine import matrix_rate, memory_bandwidth, peak_memory, reset_peak_memory, synchronize
from harken.lm.optim import Optimizer
from harken.lm.sample import sample
from harken.lm.speed import Meter, model_shape
from harken.lm.trunk import Trunk
from harken.plan import step_bytes
from harken.policy.sft import ROLE
from harken.policy.sft import train_step as sft_step
from harken.progress import QUIET, Reporter
from harken.records import Message, PreferencePair, Prompt, SamplingSettings
from harken.reward.model import ROLE as REWARD
from harken.reward.train import EncodedPair
from harken.reward.train import train_step as reward_step

MATRIX_SIZE = 2048
"""Rows and columns of the product that measures a CPU's matrix rate; a GPU takes its own larger one."""


@dataclass(frozen=True)
class Sizes:
    """How much work a phase gets."""

    rows: int = 64
    """Completions sampled, and read in scoring."""
    prompt_tokens: int = 64
    new_tokens: int = 64
    train_rows: int = 16
    """Demonstrations, and pairs, of one optimizer step."""
    runs: int = 3


QUICK = Sizes(rows=16, prompt_tokens=16, new_tokens=8, train_rows=4)


@dataclass(frozen=True)
class PhaseSpeed:
    """What was measured of one phase."""

    phase: str
    work: str
    tokens: int
    """Completion tokens drawn (sampling), tokens read (the others), in one run."""
    seconds: float
    """Median of the runs."""
    seconds_min: float
    seconds_max: float
    tokens_per_s: float
    share_of_matrix_rate: float
    share_of_bandwidth: float | None
    """Decoding only: bytes of weights and key-value cache that its steps have to read, over what memory can deliver."""
    padding_waste: float
    """Share of computed positions that held no token (sampling: of the prompts)."""
    peak_memory_bytes: int


@dataclass(frozen=True)
class Bench:
    """What `harken bench` found."""

    device: str
    dtype: str
    matrix_gflops: float
    bandwidth_gb_s: float
    has_kernels: bool
    """Whether `lm.kernels` computes between products, in place of torch."""
    phases: list[PhaseSpeed]


def bench(
    model: str,
    compute: ComputeConfig,
    *,
    sizes: Sizes | None = None,
    with_full: bool = False,
    reporter: Reporter = QUIET,
) -> Bench:
    """Measure the machine, then every phase.

    Args:
        model: folder, Hugging Face id, or `smollm2`.
        compute: device, precision, microbatches.
        sizes: how much work; the default takes a minute or two for `smollm2` on two CPU cores.
        with_full: also train all weights, which needs memory for AdamW.
        reporter: shows progress.
    """
    trunk = Trunk(load_model(model, compute=compute, notify=reporter.say))
    sizes = sizes or Sizes()
    size = None if trunk.device.type == "cuda" else MATRIX_SIZE
    workload = Workload(trunk, sizes, compute)
    rate = matrix_rate(trunk.dtype, trunk.device, size=size)
    bandwidth = memory_bandwidth(trunk.device)
    phases: list[Callable[[], PhaseSpeed]] = [
        lambda: sampling(workload, rate, bandwidth),
        lambda: scoring(workload, rate),
        lambda: training(workload, LoraConfig(), rate),
        lambda: reward_training(workload, rate),
    ]
    if with_full:
        phases.append(lambda: training(_fresh(model, compute, sizes), FullConfig(), rate))
    found: list[PhaseSpeed] = []

    def describe() -> str:
        return f"{found[-1].phase}: {found[-1].tokens_per_s:,.0f} tokens/s"

    for index in reporter.track(range(len(phases)), "bench", total=len(phases), describe=describe):
        found.append(phases[index]())
    dtype = str(trunk.dtype).removeprefix("torch.")
    has_kernels = find(trunk.dtype, trunk.device, trunk.hidden_size) is not None
    return Bench(str(trunk.device), dtype, rate / 1e9, bandwidth / 1e9, has_kernels, found)


class Workload:
    """A model and random texts for it."""

    def __init__(self, trunk: Trunk, sizes: Sizes, compute: ComputeConfig) -> None:
        """Draw prompts and completions: lengths between a half and all of what `sizes` says."""
        draw = random.Random(0)
        self.trunk, self.sizes, self.compute = trunk, sizes, compute
        stops = trunk.chat.stop_ids
        vocabulary = [token for token in range(model_shape(trunk).vocabulary) if token not in stops]

        def text(longest: int) -> list[int]:
            return draw.choices(vocabulary, k=draw.randint(max(1, longest // 2), longest))

        count = max(sizes.rows, 2 * sizes.train_rows)
        self.sequences = [Tokens(text(sizes.prompt_tokens), text(sizes.new_tokens)) for _ in range(count)]


def _fresh(model: str, compute: ComputeConfig, sizes: Sizes) -> Workload:
    return Workload(Trunk(load_model(model, compute=compute)), sizes, compute)


def sampling(workload: Workload, rate: float, bandwidth: float) -> PhaseSpeed:
    """Measure sampling: `rows` completions of different prompts, all in one batch."""
    trunk, sizes = workload.trunk, workload.sizes
    prompts = [item.prompt for item in workload.sequences[: sizes.rows]]
    lengths = [len(prompt) for prompt in prompts]

    def draw(new_tokens: int) -> int:
        settings = SamplingSettings(max_new_tokens=new_tokens)
        drawn = sample(trunk, None, prompts, settings, seeds=range(len(prompts)), batch_size=len(prompts))
        return sum(len(item.token_ids) for item in drawn)

    first = _timed(lambda: draw(1), trunk, sizes.runs)
    whole = _timed(lambda: draw(sizes.new_tokens), trunk, sizes.runs)
    drawn = draw(sizes.new_tokens)
    meter = Meter(trunk, LoraConfig())
    flops = meter.reading(sum(lengths) + drawn, len(prompts), drawn)
    steps, rows = sizes.new_tokens - 1, drawn / sizes.new_tokens
    context = sum(lengths) / len(lengths) + sizes.new_tokens / 2
    moved = steps * step_bytes(model_shape(trunk), trunk.dtype.itemsize, rows, context)
    decoding = max(1e-9, whole.median - first.median)
    return _result(
        "sampling",
        f"{sizes.rows} rows x {sizes.new_tokens} new tokens",
        drawn,
        whole,
        flops / rate,
        bandwidth=moved / decoding / bandwidth if steps else None,
        waste=padding_waste(lengths, [range(len(lengths))]),
    )


def scoring(workload: Workload, rate: float) -> PhaseSpeed:
    """Measure log-probabilities of the completion tokens, with the output layer, without gradients."""
    trunk, compute = workload.trunk, workload.compute
    chosen = workload.sequences[: workload.sizes.rows]
    batch = pad(chosen, trunk.device)

    def read() -> None:
        by_microbatch(
            batch,
            lambda part: completion_logprobs(trunk, None, part, chunk_tokens=compute.chunk_tokens).logprobs,
            max_tokens=compute.scoring_tokens,
            padded=trunk.computes_padding,
        )

    lengths = [item.size for item in chosen]
    flops = Meter(trunk, LoraConfig()).reading(sum(lengths), len(lengths), int(batch.completion_mask.sum()))
    waste = trunk.padding_waste(lengths, trunk.microbatches(lengths, compute.scoring_tokens))
    times = _timed(read, trunk, workload.sizes.runs)
    return _result("scoring", f"{len(lengths)} rows", sum(lengths), times, flops / rate, waste=waste)


def training(workload: Workload, tune: Tune, rate: float) -> PhaseSpeed:
    """Measure one optimizer step of fine-tuning: forward, backward, AdamW."""
    trunk, chosen = workload.trunk, workload.sequences[: workload.sizes.train_rows]
    config = SftConfig(tune=tune, compute=workload.compute)
    trunk.add_role(ROLE, tune, seed=0)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, 100)
    wastes: list[float] = []
    times = _timed(
        lambda: wastes.append(sft_step(trunk, optimizer, chosen, config)["padding_waste"]), trunk, workload.sizes.runs
    )
    positions = sum(item.size for item in chosen)
    flops = Meter(trunk, tune).training(positions, len(chosen), sum(len(item.completion) for item in chosen))
    name = "training, adapters" if tune.kind == "lora" else "training, all weights"
    return _result(name, f"{len(chosen)} rows", positions, times, flops / rate, waste=wastes[-1])


def reward_training(workload: Workload, rate: float) -> PhaseSpeed:
    """Measure one optimizer step of a reward model with adapters."""
    trunk, tune = workload.trunk, LoraConfig()
    config = RewardConfig(tune=tune, compute=workload.compute)
    trunk.add_role(REWARD, tune, seed=0, head=True)
    optimizer = Optimizer(trunk.parameters(REWARD), config.optimizer, 100)
    sides = workload.sequences[: 2 * workload.sizes.train_rows]
    encoded: list[EncodedPair] = list(zip(sides[::2], sides[1::2], strict=True))
    pairs = [_pair(index) for index in range(len(encoded))]
    wastes: list[float] = []
    times = _timed(
        lambda: wastes.append(reward_step(trunk, optimizer, pairs, encoded, config)["padding_waste"]),
        trunk,
        workload.sizes.runs,
    )
    positions = sum(side.size for side in sides)
    flops = Meter(trunk, tune).training(positions, len(sides), 0)
    return _result("reward training, adapters", f"{len(pairs)} pairs", positions, times, flops / rate, waste=wastes[-1])


def _pair(index: int) -> PreferencePair:
    prompt = Prompt(id=f"prompt {index}", messages=(Message(role="user", content="text"),))
    chosen, rejected = (Message(role="assistant", content=text) for text in ("one", "two"))
    return PreferencePair(id=f"pair {index}", prompt=prompt, chosen=chosen, rejected=rejected)


@dataclass(frozen=True)
class _Times:
    seconds: Sequence[float]
    peak_memory_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def _timed(work: Callable[[], object], trunk: Trunk, runs: int) -> _Times:
    """Time some runs after one that is not counted, and note the peak memory of all."""
    reset_peak_memory(trunk.device)
    seconds: list[float] = []
    for _ in range(runs + 1):
        synchronize(trunk.device)
        started = time.perf_counter()
        work()
        synchronize(trunk.device)
        seconds.append(time.perf_counter() - started)
    return _Times(seconds[1:], peak_memory(trunk.device))


def _result(
    phase: str,
    work: str,
    tokens: int,
    times: _Times,
    least_seconds: float,
    *,
    waste: float,
    bandwidth: float | None = None,
) -> PhaseSpeed:
    """Put a phase's figures together; `least_seconds` is what its operations take at the machine's matrix rate."""
    return PhaseSpeed(
        phase=phase,
        work=work,
        tokens=tokens,
        seconds=times.median,
        seconds_min=min(times.seconds),
        seconds_max=max(times.seconds),
        tokens_per_s=tokens / times.median,
        share_of_matrix_rate=least_seconds / times.median,
        share_of_bandwidth=bandwidth,
        padding_waste=waste,
        peak_memory_bytes=times.peak_memory_bytes,
    )

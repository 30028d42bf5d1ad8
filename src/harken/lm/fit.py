"""`--fit`: choose how much sampling, scoring and training take at a time, from a short profile, within the memory.

The sizes change speed and memory, not results (beyond rounding). Each phase tries sizes from small to large on the
model itself, with rows as long as the run's: it stops where memory would not suffice, where a larger size was no
faster, or where one try takes too long. Of sizes that are equally fast the smallest is taken.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harken.config import FullConfig, LoraConfig, Tune
from harken.core.logprobs import CACHED_LOGITS
from harken.errors import UsageError
from harken.lm.attention import SHORT
from harken.lm.batch import Batch, Tokens, pad
from harken.lm.forward import completion_logprobs
from harken.lm.load import Notify, ignore
from harken.lm.machine import peak_memory, reset_peak_memory, synchronize
from harken.lm.products import PACKED_BYTES
from harken.lm.sample import sample
from harken.lm.speed import model_shape
from harken.lm.trunk import Trunk
from harken.plan import Job, Phase, peak_bytes
from harken.progress import Describe, Reporter
from harken.records import SamplingSettings
from harken.shapes import ModelShape

ROLE = "fit"
LONGEST_TRY_S = 4.0
"""No larger size is tried after one that took half of this."""
GAIN = 1.03
"""A larger size has to be this much faster than a smaller one."""
HEAP_SLACK = 1.5
"""On a CPU the C library keeps freed blocks: a process holds up to this times what it uses (measured: 1.3 to 1.5)."""
MEMORY_SHARE = 0.9
"""Share of the available memory that a run may take."""


def cpu_settings(weight_bytes: int) -> dict[str, int]:
    """Return the fields of `Job` that say what a CPU holds in memory and a GPU does not, or otherwise."""
    return {
        "fp32_logits": CACHED_LOGITS,
        "plain_attention_up_to": SHORT if weight_bytes == 2 else 0,
        "packed_up_to": PACKED_BYTES,
    }


@dataclass(frozen=True)
class Fitted:
    """What was chosen."""

    job: Job
    """With the chosen `microbatch_tokens`, `scoring_tokens` and `sampling_rows`."""
    peak_bytes: int
    """Predicted peak of all phases, beyond what the process had before the model was loaded."""


def fit(trunk: Trunk, job: Job, phases: tuple[Phase, ...], *, available: int, notify: Notify = ignore) -> Fitted:
    """Choose the sizes of some phases.

    Args:
        trunk: the model, with no role on it; a role of its own is added, so it is not used any further.
        job: of the run, with rows as long as its longest; its sizes of phases that are not asked for stay.
        phases: which.
        available: bytes that were free before the model was loaded.
        notify: told in one line a phase what was measured and chosen.

    Raises:
        UsageError: not even the smallest size fits into the memory; the message says what to change.
    """
    shape = model_shape(trunk)
    tune: Tune = LoraConfig(rank=job.rank, top_layers=job.top_layers) if job.tune == "lora" else FullConfig()
    trunk.add_role(ROLE, tune, seed=0)
    for phase in phases:
        job = _fit_phase(trunk, shape, job, phase, available, notify)
    return Fitted(job, max(peak_bytes(shape, job, phase) for phase in phases))


def _fit_phase(trunk: Trunk, shape: ModelShape, job: Job, phase: Phase, available: int, notify: Notify) -> Job:
    slack = HEAP_SLACK if trunk.device.type == "cpu" else 1.0
    chosen, best = None, 0.0
    tried: list[str] = []
    for size, candidate in _candidates(job, phase):
        needed = peak_bytes(shape, candidate, phase) * slack
        if needed > MEMORY_SHARE * available:
            if chosen is None:
                raise UsageError(
                    f"--fit: {phase} needs {needed / 1e9:.2f} GB even with {size} at a time, {available / 1e9:.2f} GB "
                    "are free; take a smaller model, shorter rows, tune.kind=lora or compute.dtype=bfloat16"
                )
            tried.append(f"{size} would need {needed / 1e9:.2f} GB")
            break
        tokens, seconds = _try(trunk, candidate, phase)
        rate = tokens / seconds
        tried.append(f"{size}: {rate:,.0f}/s")
        if rate <= best * GAIN:
            break
        chosen, best = candidate, rate
        if seconds > LONGEST_TRY_S / 2:
            break
    assert chosen is not None, "there is a smallest size"
    notify(f"fit: {phase}, {_size(chosen, phase)} at a time (tokens a second by size: {', '.join(tried)})")
    return chosen


def _size(job: Job, phase: Phase) -> str:
    match phase:
        case "sampling":
            return f"{job.sampling_rows} rows"
        case "scoring":
            return f"{job.scoring_tokens} tokens"
        case "training":
            return f"{job.microbatch_tokens} tokens"


def _candidates(job: Job, phase: Phase) -> Iterator[tuple[str, Job]]:
    """Yield sizes from small to large: powers of two of rows, the last of which holds all rows there are."""
    rows = job.rows_of_step if phase == "training" else job.batch
    smallest = min(rows, max(1, 256 // job.row_tokens))
    counts = [smallest]
    while counts[-1] < rows:
        counts.append(min(rows, 2 * counts[-1]))
    for count in counts:
        match phase:
            case "sampling":
                found = replace(job, sampling_rows=count)
            case "scoring":
                found = replace(job, scoring_tokens=count * job.row_tokens)
            case "training":
                found = replace(job, microbatch_tokens=count * job.row_tokens)
        yield _size(found, phase), found


def _try(trunk: Trunk, job: Job, phase: Phase) -> tuple[int, float]:
    """Run a phase once with its size and return tokens and seconds; the first run of a shape is not counted."""
    rows = {
        "sampling": job.sampling_rows,
        "scoring": max(1, job.scoring_tokens // job.row_tokens),
        "training": max(1, job.microbatch_tokens // job.row_tokens),
    }[phase]
    draw = random.Random(0)
    tokens = range(model_shape(trunk).vocabulary)
    sequences = [
        Tokens(draw.choices(tokens, k=job.prompt_tokens), draw.choices(tokens, k=job.new_tokens)) for _ in range(rows)
    ]
    batch = pad(sequences, trunk.device)
    if phase == "sampling":
        return _try_sampling(trunk, [item.prompt for item in sequences])
    work = _score if phase == "scoring" else _train
    warm = batch.select([0])
    _seconds(lambda: work(trunk, warm, job.chunk_tokens), trunk)
    return rows * job.row_tokens, _seconds(lambda: work(trunk, batch, job.chunk_tokens), trunk)


def _try_sampling(trunk: Trunk, prompts: list[list[int]], steps: int = 4) -> tuple[int, float]:
    """Time some decoding steps: a draw of some tokens less a draw of one, which is mostly reading the prompts."""

    def draw(count: int) -> Callable[[], object]:
        settings = SamplingSettings(max_new_tokens=count)
        seeds = range(len(prompts))
        return lambda: sample(trunk, ROLE, prompts, settings, seeds=seeds, batch_size=len(prompts))

    first = _seconds(draw(1), trunk)
    return steps * len(prompts), max(1e-6, _seconds(draw(1 + steps), trunk) - first)


@torch.no_grad()
def _score(trunk: Trunk, batch: Batch, chunk_tokens: int) -> Tensor:
    return completion_logprobs(trunk, ROLE, batch, chunk_tokens=chunk_tokens, with_entropy=True).logprobs


def _train(trunk: Trunk, batch: Batch, chunk_tokens: int) -> None:
    logprobs = completion_logprobs(trunk, ROLE, batch, chunk_tokens=chunk_tokens).logprobs
    torch.autograd.backward(logprobs.sum())
    for parameter in trunk.parameters(ROLE).values():
        parameter.grad = None


def _seconds(work: Callable[[], object], trunk: Trunk) -> float:
    synchronize(trunk.device)
    started = time.perf_counter()
    work()
    synchronize(trunk.device)
    return time.perf_counter() - started


class PeakCheck(Reporter):
    """Shows progress, and says after the first step how much memory it took and how much was predicted."""

    def __init__(self, predicted: int, before: int, device: torch.device) -> None:
        """Take the prediction.

        Args:
            predicted: bytes, beyond `before`.
            before: bytes in use before the model was loaded.
            device: where it runs.
        """
        super().__init__()
        self._predicted, self._before, self._device = predicted, before, device

    def track(
        self, steps: Iterable[int], label: str, *, total: int, done: int = 0, describe: Describe | None = None
    ) -> Iterator[int]:
        """Yield steps as `Reporter.track` does; the first one's peak is compared with the prediction."""
        is_exact = reset_peak_memory(self._device)
        for count, step in enumerate(super().track(steps, label, total=total, done=done, describe=describe)):
            yield step
            if count == 0:
                self.say(self._verdict(is_exact))

    def _verdict(self, is_exact: bool) -> str:
        measured = peak_memory(self._device) - self._before
        found = f"fit: peak memory {measured / 1e9:.2f} GB in the first step, predicted {self._predicted / 1e9:.2f} GB"
        if not is_exact:
            return f"{found} (measured since the start of the process: this system cannot start anew)"
        if self._device.type == "cpu" and self._predicted < measured <= HEAP_SLACK * self._predicted:
            return f"{found} in use; the rest are freed blocks that the C library keeps"
        if measured > self._predicted * (HEAP_SLACK if self._device.type == "cpu" else 1.15):
            return f"{found}: more than expected; if memory is short, set smaller sizes by hand instead of --fit"
        return found

"""`--fit`: the smallest of the fastest sizes that the memory allows."""

import re

import pytest
import torch

from harken.errors import UsageError
from harken.lm import fit as module
from harken.lm.fit import HEAP_SLACK, PeakCheck, fit
from harken.lm.speed import model_shape
from harken.plan import Job, Phase, peak_bytes
from tests.lm.archs import make_trunk

JOB = Job(trained_roles=1, rank=4, weight_bytes=4, batch=64, step_rows=32, prompt_tokens=32, new_tokens=32)
PLENTY = 10**12


def _scripted(monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], seconds: float = 0.1) -> list[int]:
    """Let each try of so many rows reach a rate; return the list that the tries are noted in."""
    tried: list[int] = []

    def one_try(trunk: object, job: Job, phase: Phase) -> tuple[float, float]:
        rows = job.sampling_rows if phase == "sampling" else job.microbatch_tokens // job.row_tokens
        tried.append(rows)
        return rates[rows] * seconds, seconds

    monkeypatch.setattr(module, "_try", one_try)
    return tried


def test_the_smallest_of_equally_fast_sizes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _scripted(monkeypatch, {4: 100.0, 8: 150.0, 16: 153.0, 32: 300.0})
    said: list[str] = []
    found = fit(make_trunk(), JOB, ("training",), available=PLENTY, notify=said.append)
    assert found.job.microbatch_tokens == 8 * 64
    assert tried == [4, 8, 16]  # 2 % more is not worth twice the memory, so nothing larger is tried
    assert said == [
        "fit: training, 512 tokens at a time (tokens a second by size: 256 tokens: 100/s, 512 tokens: "
        "150/s, 1024 tokens: 153/s)"
    ]


def test_no_size_is_larger_than_the_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {rows: float(rows) for rows in (4, 8, 16, 32, 64)}
    tried = _scripted(monkeypatch, rates)
    found = fit(make_trunk(), JOB, ("sampling", "training"), available=PLENTY)
    assert found.job.sampling_rows == 64  # the whole batch
    assert found.job.microbatch_tokens == 32 * 64  # the rows of one optimizer step
    assert tried == [4, 8, 16, 32, 64, 4, 8, 16, 32]


def test_a_slow_try_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _scripted(monkeypatch, {4: 100.0, 8: 200.0}, seconds=3.0)
    fit(make_trunk(), JOB, ("training",), available=PLENTY)
    assert tried == [4]


def test_a_size_that_the_memory_does_not_hold_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = make_trunk()
    shape = model_shape(trunk)
    sixteen = Job(**{**vars(JOB), "microbatch_tokens": 16 * 64})
    available = int(peak_bytes(shape, sixteen, "training") * HEAP_SLACK / 0.9) - 1
    tried = _scripted(monkeypatch, {rows: float(rows) for rows in (4, 8, 16, 32)})
    found = fit(trunk, JOB, ("training",), available=available)
    assert tried == [4, 8]
    assert found.job.microbatch_tokens == 8 * 64
    assert found.peak_bytes == peak_bytes(shape, found.job, "training")


def test_too_little_memory_for_anything_is_an_error_that_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    _scripted(monkeypatch, {})
    with pytest.raises(UsageError, match=r"training needs 0\.\d+ GB even with 256 tokens at a time, 0\.01 GB are free"):
        fit(make_trunk(), JOB, ("training",), available=10**7)


def test_the_real_tries_leave_weights_and_choose_sizes() -> None:
    trunk = make_trunk()
    before = {name: value.clone() for name, value in trunk.model.named_parameters()}
    job = Job(trained_roles=1, rank=4, weight_bytes=4, batch=8, prompt_tokens=5, new_tokens=7)
    found = fit(trunk, job, ("sampling", "scoring", "training"), available=PLENTY)
    assert 1 <= found.job.sampling_rows <= 8
    assert 12 <= found.job.scoring_tokens <= 96
    assert 12 <= found.job.microbatch_tokens <= 96
    after = dict(trunk.model.named_parameters())
    for name, value in before.items():
        key = name if name in after else name.replace(".weight", ".base.weight").replace(".bias", ".base.bias")
        assert torch.equal(after[key], value)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (900, "0.00 GB in the first step, predicted 0.00 GB$"),
        (1400, "in use; the rest are freed blocks"),
        (1600, "more than expected"),
    ],
)
def test_the_first_step_is_compared_with_the_prediction(
    monkeypatch: pytest.MonkeyPatch, measured: int, words: str
) -> None:
    monkeypatch.setattr(module, "peak_memory", lambda device: measured + 50)
    monkeypatch.setattr(module, "reset_peak_memory", lambda device: True)
    check = PeakCheck(1000, 50, torch.device("cpu"))
    said: list[str] = []
    monkeypatch.setattr(check, "say", said.append)
    assert list(check.track(range(3), "sft", total=3)) == [0, 1, 2]
    verdicts = [line for line in said if line.startswith("fit:")]
    assert len(verdicts) == 1
    assert re.search(words, verdicts[0])

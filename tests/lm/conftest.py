"""The compiled kernels, as tests get them."""

import os

import pytest
import torch

from harken.lm import kernels
from harken.lm.kernels import Kernels

TYPES = [torch.float32, torch.bfloat16]


def _load(dtype: torch.dtype) -> Kernels:
    found = kernels.load(dtype)
    if found is None:
        message = "no C compiler: install one (.ci/run does)"
        if os.environ.get("HARKEN_REQUIRE_ALL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(params=TYPES, ids=["fp32", "bf16"])
def compiled(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of one type; without a compiler the test is skipped, or fails if nothing may be skipped."""
    return _load(request.param)


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Those for bf16 as on a processor with units for products; without them the same is computed by vectors."""
    found = _load(torch.bfloat16)
    monkeypatch.setattr(found, "has_units", True)
    return found

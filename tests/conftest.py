"""What all tests share: one thread, no network, fixed seeds, real data, a tiny model."""

import os

# Before torch and transformers are imported, which read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# Seconds a test may take; pytest-timeout reads it.
os.environ.setdefault("PYTEST_TIMEOUT", "300")

import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)
# No deadline (the machine may be busy) and no random seed: a failure is the code's.
hypothesis.settings.register_profile("harken", deadline=None, derandomize=True)
hypothesis.settings.load_profile("harken")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the real data, so that `-m realdata` finds them all."""
    for item in items:
        if isinstance(item, pytest.Function) and "realdata" in item.fixturenames:
            item.add_marker(pytest.mark.realdata)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:  # pyright: ignore[reportUnusedFunction]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real data; the test is skipped without it, or fails if all are required."""
    folder = Path(os.environ.get("HARKEN_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        message = f"no real data in {folder}: set HARKEN_DATA to the folder that holds it"
        if os.environ.get("HARKEN_REQUIRE_ALL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with chat template and pad token; read it, do not write into it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")

"""Hand-derived values and independent references for every core module."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import harken.core
from tests.core.checks import CHECKS

CASES = [(name, check) for name, checks in CHECKS.items() for check in checks]


@pytest.mark.parametrize(("name", "check"), CASES, ids=[check.__name__ for _, check in CASES])
def test_core_agrees_with_hand_derived_and_reference_values(name: str, check: Callable[[ModuleType], None]) -> None:
    check(importlib.import_module(f"harken.core.{name}"))


def test_every_core_module_has_value_checks() -> None:
    paths = [path for folder in harken.core.__path__ for path in Path(folder).glob("*.py")]
    assert {path.stem for path in paths} - {"__init__"} == CHECKS.keys()

"""The value checks are sharp: every one-edit wrong version of core fails one of them."""

import importlib
import inspect

import pytest

from tests.core.checks import CHECKS
from tests.core.mutants import MUTANTS, Mutant, execute


def source_of(module: str) -> str:
    return inspect.getsource(importlib.import_module(f"harken.core.{module}"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{m.module}: {m.name}" for m in MUTANTS])
def test_mutant_is_caught_by_the_value_checks(mutant: Mutant) -> None:
    source = source_of(mutant.module)
    assert source.count(mutant.old) == 1, "the edit must name exactly one place in the source"
    mutated = source.replace(mutant.old, mutant.new)
    assert mutated != source
    module = execute(mutant.module, mutated)
    caught_by: list[str] = []
    for check in CHECKS[mutant.module]:
        try:
            check(module)
        except AssertionError:
            caught_by.append(check.__name__)
    assert caught_by, f"survived: {mutant.old!r} -> {mutant.new!r}"


@pytest.mark.parametrize("name", CHECKS)
def test_unchanged_source_passes_when_executed_the_same_way(name: str) -> None:
    module = execute(name, source_of(name))
    for check in CHECKS[name]:
        check(module)


def test_every_module_with_checks_has_mutants() -> None:
    assert {mutant.module for mutant in MUTANTS} == CHECKS.keys()

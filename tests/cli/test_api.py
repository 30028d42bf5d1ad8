"""`import harken`: quick, complete, and the same in whatever order modules are imported."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import harken

SRC = Path(__file__).resolve().parents[2] / "src"


def run_python(code: str) -> str:
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_every_public_name_is_there_and_none_is_a_module() -> None:
    assert set(harken.__all__) <= set(dir(harken))
    assert not [name for name in harken.__all__ if isinstance(getattr(harken, name), ModuleType)]


def test_the_type_checker_sees_what_python_finds() -> None:
    tree = ast.parse(Path(harken.__file__).read_text(encoding="utf-8"))
    seen: dict[str, tuple[str, str]] = {}
    for block in tree.body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in block.body:
                assert isinstance(node, ast.ImportFrom)
                seen |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
    assert set(seen) == set(harken.__all__)
    for name, (module, original) in seen.items():
        assert getattr(harken, name) is getattr(sys.modules[module], original), name


ORDERS = {
    "package first": (
        "import harken.generate.sampling, harken.evaluate.text; from harken.evaluate import text\n"
        "import harken.pipeline"
    ),
    "function first": "import harken; harken.generate; import harken.generate.sampling, harken.evaluate.evaluate",
}


@pytest.mark.parametrize("order", ORDERS)
def test_generate_and_evaluate_are_functions_in_every_order_of_imports(order: str) -> None:
    code = (
        f"{ORDERS[order]}; import harken\n"
        "from harken import evaluate, generate\n"
        "import harken.generate.sampling, sys\n"
        "own = sys.modules['harken.generate.sampling'].generate\n"
        "print(harken.generate is generate is own, callable(harken.evaluate), harken.evaluate is evaluate)"
    )
    assert run_python(code) == "True True True"


def test_other_packages_stay_attributes_and_functions_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> None:
        """Stand in for evaluate."""

    monkeypatch.setattr(harken, "evaluate", other)
    assert harken.evaluate is other
    monkeypatch.undo()
    assert harken.evaluate is not other
    assert run_python("import harken.config, harken; print(harken.config.__name__)") == "harken.config"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'harken' has no attribute 'trian'"):
        getattr(harken, "trian")  # noqa: B009 (pyright would refuse the plain attribute)

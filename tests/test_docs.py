"""Every command, option, config field, metric and recipe is documented, or the build fails."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import typer.main
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RECIPES = ROOT / "src" / "harken" / "recipes"


def _doc(name: str) -> str:
    path = DOCS / name
    if not path.is_file():
        pytest.fail(f"docs/{name} is missing: write it")
    return path.read_text(encoding="utf-8")


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.fail(f"cannot import {name}: {error}")


def _attribute(module: str, name: str) -> Any:
    found = getattr(_module(module), name, None)
    if found is None:
        pytest.fail(f"{module} has no {name}, which this test reads")
    return found


def _names_in_code(text: str) -> set[str]:
    """Everything that stands alone between backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def _commands() -> Iterator[tuple[str, Any]]:
    """Path and command of every visible leaf of the command line."""

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        children: dict[str, Any] = getattr(command, "commands", {})
        if not children:
            yield path, command
        for name, child in children.items():
            if not child.hidden:
                yield from walk(f"{path} {name}", child)

    yield from walk("harken", typer.main.get_command(_attribute("harken.cli", "app")))


def _sections(text: str) -> dict[str, str]:
    """Heading line -> heading and text up to the next heading; `#` inside a code block is none."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    in_code = False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            lines = sections.setdefault(line, [])
        lines.append(line)
    return {heading: "\n".join(body) for heading, body in sections.items()}


def test_every_command_and_option_is_in_the_commands_page() -> None:
    sections = _sections(_doc("commands.md"))
    missing: list[str] = []
    commands = list(_commands())
    assert len(commands) > 5, f"found only {commands}: does the walk still understand typer?"
    for path, command in commands:
        own = re.compile(rf"{re.escape(path)}(?![\w-])(?! [a-z])")
        section = next((body for head, body in sections.items() if own.search(head)), None)
        if section is None:
            missing.append(f"{path}: no heading that names it, such as `## {path}`")
            continue
        for parameter in command.params:
            if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
                continue
            is_option = parameter.param_type_name == "option"
            name = max(parameter.opts, key=len) if is_option else parameter.name
            shown = name if is_option else (parameter.metavar or name).upper()
            if not re.search(rf"(?<![\w-]){re.escape(shown)}(?![\w-])", section):
                missing.append(f"{path}: {shown} is not in its section")
    assert not missing, "\n".join(["docs/commands.md lacks:", *missing])


@cache
def _config_models() -> dict[str, type[BaseModel]]:
    """Every pydantic model of harken.config, and every model that one of their fields holds."""
    package = _module("harken.config")
    modules = [package] + [_module(found.name) for found in pkgutil.walk_packages(package.__path__, "harken.config.")]
    waiting = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__.startswith("harken.config")
    ]
    models: dict[str, type[BaseModel]] = {}
    while waiting:
        model = waiting.pop()
        name = f"{model.__module__}.{model.__qualname__}"
        if name not in models:
            models[name] = model
            for field in model.model_fields.values():
                waiting += _models_in(field.annotation)
    if not any(model.model_fields for model in models.values()):
        pytest.fail("harken.config has no pydantic models with fields")
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def test_every_config_field_says_what_it_is() -> None:
    missing = [
        f"{name}.{field}"
        for name, model in _config_models().items()
        for field, info in model.model_fields.items()
        if not (info.description or "").strip()
    ]
    help_text = "no docstring under the field (with use_attribute_docstrings=True) for:"
    assert not missing, "\n".join([help_text, *missing])


def test_every_config_field_is_in_the_config_page() -> None:
    names = _names_in_code(_doc("config.md"))
    missing = [
        f"`{field}` of {name}"
        for name, model in _config_models().items()
        for field in model.model_fields
        if field not in names and not any(known.endswith(f".{field}") for known in names)
    ]
    assert not missing, "\n".join(["docs/config.md lacks:", *missing])


def test_every_metric_has_a_definition_in_the_metrics_page() -> None:
    definitions: dict[str, str] = _attribute("harken.metrics", "DEFINITIONS")
    assert definitions, "harken.metrics.DEFINITIONS is empty"
    vague = [key for key, text in definitions.items() if not text.strip().endswith(".")]
    assert not vague, f"no whole sentence in harken.metrics.DEFINITIONS for: {vague}"
    missing = sorted(set(definitions) - _names_in_code(_doc("metrics.md")))
    assert not missing, "\n".join(["docs/metrics.md lacks:", *(f"`{key}`" for key in missing)])


def test_every_endpoint_is_in_the_api_page() -> None:
    paths: dict[str, dict[str, Any]] = _attribute("harken.feedback.web.api", "describe")()["paths"]
    assert len(paths) > 10
    names = _names_in_code(_doc("api.md"))
    missing = [
        f"`{m.upper()} {path}`" for path, found in paths.items() for m in found if f"{m.upper()} {path}" not in names
    ]
    assert not missing, "\n".join(["docs/api.md lacks:", *missing])


def test_every_recipe_loads_and_is_in_the_recipes_page() -> None:
    recipes = sorted(RECIPES.glob("*.toml"))
    assert recipes, "no recipes in src/harken/recipes"
    load_recipe = _attribute("harken.config", "load_recipe")
    names = _names_in_code(_doc("recipes.md"))
    for recipe in recipes:
        load_recipe(recipe)
        assert {recipe.stem, recipe.name} & names, f"docs/recipes.md lacks `{recipe.stem}`"


def test_the_migration_page_names_settings_that_exist() -> None:
    field_paths = _attribute("harken.config", "field_paths")
    known = {path for model in _config_models().values() for path in field_paths(model)}
    commands = {path for path, _ in _commands()}
    wrong: list[str] = []
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]*) ?\|$", _doc("migrating.md"), flags=re.MULTILINE)
    rows = [cell for cell, _ in rows if cell not in ("here", "---")]
    assert len(rows) > 80, f"found {len(rows)} rows: does the pattern still fit the tables?"
    for cell in rows:
        for span in re.findall(r"`([^`]+)`", cell):
            name = span.split(" = ")[0]
            is_function = name.startswith("harken.") and hasattr(_module("harken"), name.removeprefix("harken."))
            if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name) and name not in known and not is_function:
                wrong.append(f"{span}: no such setting")
            if span.startswith("harken ") and " ".join(span.split()[:2]) not in commands:
                wrong.append(f"{span}: no such command")
    assert not wrong, "\n".join(wrong)


def test_links_between_documents_lead_somewhere() -> None:
    broken: list[str] = []
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, "\n".join(["links to files that are not there:", *broken])

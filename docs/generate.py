"""Write the parts of the documentation that come from the code: commands, settings, metrics, endpoints.

python docs/generate.py            rewrite them
python docs/generate.py --check    say which pages differ, and exit with 1 if one does

A generated part stands between two marker comments; everything around it is written by hand.
"""

import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harken import config
from harken.cli import app
from harken.feedback.web.api import describe
from harken.metrics import DEFINITIONS

DOCS = Path(__file__).resolve().parent
BEGIN = "<!-- begin: written by docs/generate.py -->"
END = "<!-- end -->"
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

STAGES: dict[str, type[config.Config]] = {
    "A recipe (`harken run`)": config.RecipeConfig,
    "`harken sft`": config.SftConfig,
    "`harken reward`": config.RewardConfig,
    "`harken dpo`": config.DpoConfig,
    "`harken ipo`": config.IpoConfig,
    "`harken simpo`": config.SimpoConfig,
    "`harken orpo`": config.OrpoConfig,
    "`harken cpo`": config.CpoConfig,
    "`harken kto`": config.KtoConfig,
    "`harken online-dpo`": config.OnlineDpoConfig,
    "`harken ppo`": config.PpoConfig,
    "`harken ilql`": config.IlqlConfig,
    "`harken rft`": config.RftConfig,
    "`harken generate`": config.GenerateConfig,
    "`harken generate --best-of`": config.BestOfConfig,
    "`harken evaluate`": config.EvaluateConfig,
    "`harken preferences`": config.PreferencesConfig,
    "`harken collect tasks`": config.ProjectConfig,
    "`harken collect sample`": config.SampleConfig,
    "`harken collect judge`": config.JudgeConfig,
    "`harken ui --chat`": config.LiveChatConfig,
    "`harken report --datasheet`": config.DisclosureConfig,
}
"""Heading -> class; the classes they hold get their own sections below."""


def commands() -> str:
    """Return a section for every command."""
    return "\n".join(_command(path, command) for path, command in _leaves("harken", typer.main.get_command(app)))


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield path, command
        return
    for name in command.list_commands(None):
        yield from _leaves(f"{path} {name}", children[name])


def _command(path: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if "--help" not in parameter.opts]
    arguments = [_name(parameter) for parameter in parameters if parameter.param_type_name == "argument"]
    examples = [line[2:] for line in command.epilog.splitlines() if line.startswith("  ")]
    rows = [f"| {_shown(parameter)} | {_meaning(parameter)} |" for parameter in parameters]
    return "\n".join(
        [
            f"## `{path}`\n",
            f"{command.help}\n",
            f"Usage: `{' '.join([path, *arguments, '[OPTIONS]'])}`\n",
            "| argument or option | meaning |",
            "|---|---|",
            *rows,
            "",
            "```sh",
            *examples,
            "```\n",
        ]
    )


def _name(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _shown(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_name(parameter)}`"
    option = max(parameter.opts, key=len)
    return f"`{option}`" if parameter.is_flag else f"`{option} {_name(parameter)}`"


def _meaning(parameter: Any) -> str:
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    extra = "Required." if parameter.required else f"Default: `{default}`." if default else ""
    return f"{_cell(parameter.help)} {extra}".strip()


def settings() -> str:
    """Return a section for every config class, those of whole stages first."""
    titles = {model: title for title, model in STAGES.items()}
    waiting = list(titles)
    for model in waiting:
        inner = [found for field in model.model_fields.values() for found in _models(field.annotation)]
        for found in inner:
            if found not in titles:
                titles[found] = f"`{found.__name__}`"
                waiting.append(found)
    return "\n".join(_settings_section(titles[model], model, titles) for model in waiting)


def _models(annotation: Any) -> list[type[config.Config]]:
    if isinstance(annotation, type) and issubclass(annotation, config.Config):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _settings_section(title: str, model: type[config.Config], titles: dict[type[config.Config], str]) -> str:
    text = " ".join((model.__doc__ or "").split())
    rows: list[str] = []
    for name, field in model.model_fields.items():
        kind = _type(field.annotation, field.metadata, titles)
        rows.append(f"| `{name}` | {kind} | {_default(field)} | {_cell(field.description)} |")
    return "\n".join(
        [f"## {title}\n", f"{text}\n", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _type(annotation: Any, metadata: list[Any], titles: dict[type[config.Config], str]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _type(inner, [*metadata, *more], titles)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        parts = [_type(part, metadata, titles) for part in get_args(annotation) if part is not NoneType]
        return " or ".join([*parts, *(["none"] if NoneType in get_args(annotation) else [])])
    if origin is tuple:
        inner, *rest = get_args(annotation)
        return f"list of {_type(inner, [], titles)}" if rest == [...] else f"{1 + len(rest)} numbers"
    if origin is dict:
        key, value = (_type(part, [], titles) for part in get_args(annotation))
        return f"table of {key} to {value}"
    if annotation in titles:
        return f"[{titles[annotation].strip('`')}](#{_anchor(titles[annotation])})"
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    bounds = [f"{sign} {found:g}" for found, sign in _bounds(metadata)]
    return " ".join([names.get(annotation, str(annotation)), ", ".join(bounds)]).strip()


def _bounds(metadata: list[Any]) -> Iterator[tuple[float, str]]:
    for item in metadata:
        for part in (item, *getattr(item, "metadata", ())):
            for name, sign in BOUNDS.items():
                if getattr(part, name, None) is not None:
                    yield getattr(part, name), sign


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_defaults=True)
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}  # pyright: ignore[reportAttributeAccessIssue]
        changed = ", ".join(f"{key} = {item!r}" for key, item in {**kind, **given}.items())
        return f"`{changed}`" if changed else "as there"
    if isinstance(value, tuple):
        return f"`[{', '.join(_item(item) for item in value)}]`"
    if value is None or value == "":
        return "none" if value is None else "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _item(value: Any) -> str:
    if isinstance(value, BaseModel):
        return f"{{{', '.join(f'{key} = {item!r}' for key, item in value.model_dump(exclude_defaults=True).items())}}}"
    return f"{value!r}" if isinstance(value, str) else f"{value:.4g}"


def metrics() -> str:
    """Return a table of all metrics."""
    rows = [f"| `{name}` | {_cell(text)} |" for name, text in DEFINITIONS.items()]
    return "\n".join(["| metric | meaning |", "|---|---|", *rows, ""])


def endpoints() -> str:
    """Return a table of the endpoints, and one of the fields of each object that goes in or out."""
    found = describe()
    rows: list[str] = []
    for path, methods in found["paths"].items():
        for method, about in methods.items():
            cells = (
                f"`{method.upper()} {path}`",
                _cell(about["description"]),
                _shape(_body(about)),
                _shape(_answer(about)),
            )
            rows.append(f"| {' | '.join(cells)} |")
    parts = ["| endpoint | does | body | answer |", "|---|---|---|---|", *rows, ""]
    for name, schema in sorted(found["components"]["schemas"].items()):
        if _is_own(name):
            parts += [
                f"### {name}\n",
                f"{_cell(schema.get('description'))}\n",
                "| field | type | meaning |",
                "|---|---|---|",
            ]
            parts += [
                f"| `{key}` | {_shape(field)} | {_cell(field.get('description'))} |"
                for key, field in schema["properties"].items()
            ]
            parts.append("")
    return "\n".join(parts)


def _is_own(name: str) -> bool:
    """Tell whether a schema is the API's; records and settings have pages of their own."""
    return name in {"Added", "Claim", "Handed", "Me", "NewProject", "NewTasks", "Place", "ProjectShown", "Progress",
                    "Receipt", "TaskState", "Turn"}  # fmt: skip


def _body(about: dict[str, Any]) -> dict[str, Any]:
    return about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})


def _answer(about: dict[str, Any]) -> dict[str, Any]:
    good = next(answer for code, answer in about["responses"].items() if code.startswith("2"))
    return good.get("content", {}).get("application/json", {}).get("schema", {})


def _shape(schema: dict[str, Any]) -> str:
    """Return a JSON schema in a word."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if _is_own(name) else f"`{name}`"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_shape(option) for option in options))
    if "enum" in schema:
        return ", ".join(f'`"{value}"`' for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_shape(schema['items'])}" if "items" in schema else "list"
    words = {"integer": "whole number", "string": "text", "boolean": "`true`, `false`", "null": "null"}
    return words.get(schema.get("type", ""), schema.get("type", ""))


def _cell(text: str | None) -> str:
    whole = " ".join((text or "").split()).replace("|", "\\|")
    return whole if not whole or whole.endswith((".", "?", "!")) else f"{whole}."


PAGES = {"commands.md": commands, "config.md": settings, "metrics.md": metrics, "api.md": endpoints}


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or check them; return the exit code."""
    stale: list[str] = []
    for name, make in PAGES.items():
        page = DOCS / name
        text = page.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            sys.stderr.write(f"{page}: the markers {BEGIN} and {END} are missing\n")
            return 2
        fresh = f"{before}{BEGIN}\n\n{make()}\n{END}{after}"
        if fresh != text:
            stale.append(name)
            if "--check" not in arguments:
                page.write_text(fresh, encoding="utf-8")
    if stale:
        verb = "differ from the code; run python docs/generate.py" if "--check" in arguments else "rewritten"
        sys.stdout.write(f"{', '.join(stale)}: {verb}\n")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

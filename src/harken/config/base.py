"""What all configs share: frozen, an unknown key is an error that names the nearest valid key."""

import copy
import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from harken.artifacts import read_bytes
from harken.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every config: the class defaults are the recommended setting."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, values: object) -> object:
        """Let a section that sets some keys keep the others as this stage's default has them, its `kind` included."""
        if not isinstance(values, Mapping):
            return values
        merged = dict(cast("Mapping[str, Any]", values))
        for name, field in cls.model_fields.items():
            if name in merged and isinstance(field.default, Config):
                merged[name] = laid_over(field.default.model_dump(), merged[name])
        return merged


def laid_over(defaults: object, given: object) -> Any:
    """Return settings with others laid over them: sections key by key, unless their `kind` becomes another one."""
    if not isinstance(given, Mapping):
        return given
    section = cast("Mapping[str, Any]", given)
    base = cast("Mapping[str, Any]", defaults if isinstance(defaults, Mapping) else {})
    if section.get("kind", base.get("kind")) != base.get("kind"):
        return dict(section)  # another variant has its own defaults
    return {**base, **{key: laid_over(base.get(key), value) for key, value in section.items()}}


def build(model: type[ConfigT], values: Mapping[str, Any], *, where: str) -> ConfigT:
    """Validate `values` into `model`; a `ConfigError` names the key, what was found, and the nearest valid key.

    Args:
        model: the config class.
        values: nested mappings as read from TOML or `--set`.
        where: file or flag that the values came from, for the message.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ConfigError(_explain(model, cast("dict[str, Any]", problem), where)) from error


def _explain(model: type[Config], problem: dict[str, Any], where: str) -> str:
    path = _written_path(model, [str(part) for part in problem["loc"]])
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        valid = sorted(set(field_paths(model)))
        leaves = {name.rsplit(".", 1)[-1]: name for name in valid}
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
        if key in valid:
            return f"{where}: config key {key!r} belongs to another `kind` of this section"
        near = near or [leaves[leaf] for leaf in difflib.get_close_matches(path[-1], leaves, n=1, cutoff=0.6)]
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid[:12])}, ..."
        return f"{where}: unknown config key {key!r}; {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = "" if problem["type"] in ("value_error", "missing") else f", found {problem['input']!r}"
    return f"{where}: config key {key!r}: {message}{found}" if key else f"{where}: {message}{found}"


def _written_path(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return a path as people write it: without the variant's name that pydantic puts behind a union's key."""
    path: list[str] = []
    models = [model]
    for part in location:
        fields = [one.model_fields[part] for one in models if part in one.model_fields]
        variants = [one for one in models if "kind" in one.model_fields and one.model_fields["kind"].default == part]
        if variants and not fields:
            models = variants
        else:
            path.append(part)
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return path


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field of a config, nested ones included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from field_paths(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a `ConfigError` names file and line."""
    try:
        return tomllib.loads(read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with `a.b=c` overrides applied; c is read as TOML, else taken as a string."""
    merged: dict[str, Any] = copy.deepcopy(dict(values))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: expected KEY=VALUE, for example optimizer.learning_rate=1e-4")
        node = merged
        *parents, last = key.strip().split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {parent!r} is a value, not a section")
            node = cast("dict[str, Any]", child)
        try:
            node[last] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            node[last] = text
    return merged


def load(model: type[ConfigT], path: Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a TOML file (or start from the defaults), apply overrides, validate."""
    values = read_toml(path) if path else {}
    where = str(path) if path else "--set"
    return build(model, apply_overrides(values, overrides), where=where)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line per key whose value differs, as `key: old -> new`."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner_before, inner_after = (
                cast("dict[str, Any]", before),
                cast("dict[str, Any]", after),
            )
            lines += differences(inner_before, inner_after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines

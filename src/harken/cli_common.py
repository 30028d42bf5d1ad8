"""What the commands share: options, examples for `--help`, and small helpers that need no heavy import."""

import contextlib
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from harken.config import Config
    from harken.progress import Reporter

ConfigT = TypeVar("ConfigT", bound="Config")

ModelOption = Annotated[
    str,
    typer.Option("--model", metavar="M", help="Folder, Hugging Face id, .gguf file, or smollm2."),
]
PromptsOption = Annotated[
    Path,
    typer.Option("--prompts", metavar="F", help="Prompts: JSON Lines, or a .txt file with one prompt a line."),
]
FolderOption = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Run folder. The same command again goes on in it."),
]
FileOption = Annotated[
    Path,
    typer.Option("--out", metavar="F", help="File to write; one that is there is replaced."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="F", help="TOML file with settings; the keys are in docs/config.md."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, as in seed=1; may be given many times."),
]
RewardsOption = Annotated[
    list[str],
    typer.Option(
        "--reward",
        metavar="R",
        help="Reward model folder, file.py:function, lexicon, or an http(s) address; WEIGHT*R for a weight. Several "
        "are added up.",
    ),
]
StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="URL", help="Feedback store, such as sqlite:///feedback.db."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


def examples(*lines: str) -> str:
    """Return the examples at the end of a command's help, marked so that their lines stay as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def settings(model: type[ConfigT], path: Path | None, overrides: Sequence[str] | None) -> ConfigT:
    """Return a command's config from `--config` and `--set`."""
    from harken.config import load

    return load(model, path, overrides or ())


def reporter() -> "Reporter":
    """Return where a command says what it does: standard error."""
    from harken.progress import Reporter

    return Reporter()


def show(text: str) -> None:
    """Print a result to standard output."""
    typer.echo(text)


def show_json(value: object) -> None:
    """Print a result as JSON to standard output."""
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with aligned columns, the first column to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def interval(estimate: Mapping[str, Any] | None) -> str:
    """Return a value with its 95 % interval, or `-` where there is none."""
    if estimate is None or estimate["value"] is None:
        return "-"
    value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def check_out_file(path: Path) -> None:
    """Find out before the work whether a file can be written afterwards.

    Raises:
        UsageError: it is a folder.
        StorageError: its folder cannot be made or written.
    """
    from harken.artifacts import storage_errors
    from harken.errors import UsageError

    if path.is_dir():
        raise UsageError(f"--out {path}: a folder; give the name of a file")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(13, "Permission denied", str(path.parent))


@contextlib.contextmanager
def run_folder(out: Path) -> Generator[None]:
    """Take back run folders in which nothing was done when the block fails.

    A folder refuses other settings than it was started with. One that was stopped by a mistake before its first step
    holds nothing but these settings, and would be in the way of the command with the mistake mended.
    """
    is_new = not out.exists()
    try:
        yield
    except BaseException:
        for folder in (*out.glob("*/"), out):
            entries = list(folder.glob("*"))
            if entries and {entry.name for entry in entries} <= {"config.json", "settled.json"}:
                for entry in entries:
                    entry.unlink()
                folder.rmdir()
        if is_new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise


def model_name(name: str) -> str:
    """Return the model that `--model` means: of a run folder (`out/sft`) the model in it (`out/sft/model`)."""
    inner = Path(name) / "model"
    return str(inner) if (inner / "config.json").exists() else name


def reward_inputs(specs: Sequence[str]) -> dict[str, Path | str]:
    """Return the rewards as named inputs of a run: what `--reward` said, and the file or folder behind it."""
    inputs: dict[str, Path | str] = {}
    for number, spec in enumerate(specs, start=1):
        name = "reward" if len(specs) == 1 else f"reward_{number}"
        weight, star, rest = spec.partition("*")
        source = rest if star else spec
        if star:
            inputs[f"{name}_weight"] = weight
        file, _, function = source.rpartition(":")
        if file.endswith(".py"):
            inputs[name], inputs[f"{name}_function"] = Path(file), function
        else:
            inputs[name] = source
    return inputs


def digest(source: str | Path) -> str:
    """Return what a file records of something it was made from: the digest of a file or folder, else its name."""
    from harken.artifacts import artifact_digest

    return artifact_digest(Path(source)) if Path(source).exists() else str(source)

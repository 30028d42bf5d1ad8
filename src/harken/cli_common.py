"""What the commands share: options, examples for `--help`, and small helpers that need no heavy import."""

import contextlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from harken.config import Config
    from harken.feedback.exchange.read import Data
    from harken.progress import Reporter
    from harken.records import Prompt

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
FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="Format of the file, where it is not to be found out."),
]
MapOption = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="NAME=COLUMN", help="Read a column under another name, as in prompt=question."),
]
ScaleOption = Annotated[
    list[str] | None,
    typer.Option("--scale", metavar="AXIS=LOW:HIGH", help="Scale of ratings, where the file does not say."),
]
LabelingOption = Annotated[
    Path | None,
    typer.Option("--labeling-config", metavar="F", help="Label Studio: the project's labeling config (XML)."),
]
BucketsOption = Annotated[
    str | None,
    typer.Option("--buckets", metavar="A,B,...", help="Label Studio: buckets of a ranker, from best to worst."),
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


def train_by_reward(
    train: Callable[..., Path],
    asked: Any,
    model: str,
    records: "Sequence[Prompt]",
    *,
    prompts: Path,
    rewards: list[str],
    out: Path,
    progress: "Reporter",
    judge: str | None = None,
) -> None:
    """Load the rewards, run a stage that learns from them, and print where its model is.

    Args:
        train: the stage: (model, prompts, reward, out, config, inputs=, reporter=) to the model's folder.
        asked: its settings.
        model: as given on the command line.
        records: the prompts.
        prompts: where they come from, for the manifest.
        rewards: as given on the command line.
        out: run folder.
        progress: shows progress.
        judge: a reward that nothing is learned from, for a stage that takes one.
    """
    from harken.reward.functions import load_reward

    reward = load_reward(rewards, compute=asked.compute, notify=progress.say)
    inputs = {"prompts": prompts, **reward_inputs(rewards)}
    more: dict[str, Any] = {}
    if judge is not None:
        more["judge"] = load_reward(judge, compute=asked.compute, notify=progress.say)
        inputs |= reward_inputs([judge], "judge")
    with run_folder(out):
        folder = train(model_name(model), records, reward, out, asked, inputs=inputs, reporter=progress, **more)
    show(str(folder))


def reward_inputs(specs: Sequence[str], kind: str = "reward") -> dict[str, Path | str]:
    """Return the rewards as named inputs of a run: what `--reward` (or `--judge`) said, and the file or folder."""
    inputs: dict[str, Path | str] = {}
    for number, spec in enumerate(specs, start=1):
        name = kind if len(specs) == 1 else f"{kind}_{number}"
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


@dataclass(frozen=True)
class FileOptions:
    """What the command line says about a file in a foreign format."""

    format: str | None = None
    renamed: Sequence[str] | None = None
    scales: Sequence[str] | None = None
    labeling_config: Path | None = None
    buckets: str | None = None


def open_file(path: str, options: FileOptions) -> "Data":
    """Find out what a file of feedback or training data is.

    Raises:
        UsageError: an option that is not of its form.
        DataError: the file cannot be read, or is of no known format.
    """
    from typing import cast

    from harken.errors import UsageError
    from harken.feedback.exchange.entry import Reading
    from harken.feedback.exchange.read import FORMATS, Format, open_data

    if options.format is not None and options.format not in FORMATS:
        raise UsageError(f"--format {options.format!r}: no such format; there are {', '.join(FORMATS)}")
    scales: dict[str, tuple[float, float]] = {}
    for axis, value in _named("--scale", options.scales, "AXIS=LOW:HIGH"):
        low, _, high = value.partition(":")
        try:
            scales[axis] = (float(low), float(high))
        except ValueError as error:
            raise UsageError(f"--scale {axis}={value}: expected AXIS=LOW:HIGH, as in quality=1:5") from error
    reading = Reading(
        Path(path),
        renamed=dict(_named("--map", options.renamed, "NAME=COLUMN")),
        scales=scales,
        labeling_config=options.labeling_config,
        buckets=tuple(options.buckets.split(",")) if options.buckets else (),
    )
    return open_data(reading, cast(Format | None, options.format))


def _named(option: str, values: Sequence[str] | None, form: str) -> list[tuple[str, str]]:
    from harken.errors import UsageError

    found: list[tuple[str, str]] = []
    for value in values or ():
        name, sign, rest = value.partition("=")
        if not (name and sign and rest):
            raise UsageError(f"{option} {value}: expected {form}")
        found.append((name, rest))
    return found

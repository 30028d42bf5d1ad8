"""Commands for whole runs: demo, run, init, report."""

from pathlib import Path
from typing import Annotated

import typer

from harken.cli_common import SetOption, reporter, run_folder, show

FAST = (
    "preferences.max_pairs=192",
    "preferences.max_heldout_pairs=64",
    "sft.max_demonstrations=192",
    "reward.normalization_samples=32",
    "ppo.steps=2",
    "ppo.prompts_per_step=32",
    "ppo.score.accept_chance=true",  # so few pairs teach a reward model hardly anything, and PPO would refuse it
    "evaluate.max_prompts=32",
)
"""What `harken demo --fast` changes: enough to see every stage work, too little to learn much."""

OptionalFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder. The same command again goes on in it."),
]

INIT_HEADER = """\
# Your recipe: one turn of the loop, from people's judgments to a better model.
#
#     harken run {recipe} --out {out}
#
# Every key and its default stands in docs/config.md of Harken; a key that you leave out has its default. As it is, this
# recipe runs on real ratings of movie reviews. For your own feedback, put the files into {data} and change [collect]:
#
#     format = "harken"          # a folder made by `harken collect export`
#     path = "{data}/export"     # seen from where you start `harken`
#
# What follows is the recipe `{name}` that ships with Harken.

"""


def demo(
    out: OptionalFolder = None,
    fast: Annotated[bool, typer.Option("--fast", help="A small run, to see that everything works.")] = False,
    changes: SetOption = None,
) -> None:
    """Run the whole loop once, on real ratings and a real model.

    Takes up to 15 minutes on 2 CPU cores, by how fast they are in bf16, and writes out/demo/report.html
    (with --fast: 2 minutes and out/demo-fast/report.html).
    """
    folder = out or Path("out/demo-fast" if fast else "out/demo")
    _run("reviews", folder, [*(FAST if fast else ()), *(changes or ())])


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")],
    out: OptionalFolder = None,
    changes: SetOption = None,
) -> None:
    """Run all stages of a recipe, or what is left of them.

    A run that was stopped goes on where it stopped; what decides it is in the recipe and --set. Without --out the run
    folder is out/NAME, with the recipe's name.
    """
    _run(recipe, out, changes or [])


def _run(name: str, out: Path | None, changes: list[str]) -> None:
    from harken.config import load_recipe

    recipe = load_recipe(name, changes)
    folder = out or Path("out") / recipe.name
    from harken.pipeline import run_recipe
    from harken.report.facts import verdict
    from harken.report.run_folder import read_run

    with run_folder(folder):
        page = run_recipe(recipe, folder, reporter())
    show(f"{verdict(read_run(folder).evaluation).text}.\n{page}")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it must be new or empty.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="The shipped recipe to start from.")
    ] = "reviews",
) -> None:
    """Make a folder with a recipe to start from.

    The recipe is commented and runs as it is; beside it are places for data and runs.
    """
    from harken.artifacts import read_text, storage_errors, write_text
    from harken.config import RECIPES
    from harken.errors import UsageError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already and not an empty folder; nothing was written: choose another")
    source = RECIPES / f"{recipe}.toml"
    if not source.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise UsageError(f"--recipe {recipe}: no recipe of that name ships with Harken; there are {known}")
    data, runs, target = folder / "data", folder / "out", folder / "recipe.toml"
    header = INIT_HEADER.format(recipe=target, out=runs / "first", data=data, name=recipe)
    with storage_errors(folder):
        data.mkdir(parents=True, exist_ok=True)
        runs.mkdir(exist_ok=True)
    write_text(target, header + read_text(source))
    show(f"wrote {target}\nnext: harken run {target} --out {runs / 'first'}")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with the stages' folders in it.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="F", help="HTML file, RUN/report.html if left out; with --datasheet a folder."),
    ] = None,
    is_datasheet: Annotated[
        bool, typer.Option("--datasheet", help="Write a datasheet of the feedback instead: who was asked, and how.")
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="URL", help="With --datasheet: the store; RUN/collect/feedback.db if left out."
        ),
    ] = None,
    about: Annotated[
        Path | None,
        typer.Option(
            "--about", metavar="F", help="With --datasheet: TOML file with what only you know; docs/config.md."
        ),
    ] = None,
    changes: SetOption = None,
) -> None:
    """Write one HTML page about a run, or a datasheet of its feedback.

    The page needs no network and no other file. RUN holds the folders collect, preferences, sft, reward, ppo and
    evaluate, as far as they were made. A datasheet is a folder with datasheet.md, datasheet.html, datasheet.json and
    croissant.json; the last names the files of an export in RUN/collect/export or in RUN itself.
    """
    from harken.cli_common import check_out_file
    from harken.errors import UsageError
    from harken.report.html import write_report

    if is_datasheet:
        _datasheet(run, out or run / "datasheet", store, about, changes)
        return
    if store or about or changes:
        raise UsageError("--store, --about and --set are for --datasheet: give that too, or leave them out")
    page = out or run / "report.html"
    if out is not None:
        check_out_file(out)
    write_report(run, page)
    show(str(page))


def _datasheet(run: Path, out: Path, store: str | None, about: Path | None, changes: list[str] | None) -> None:
    from harken.cli_common import settings
    from harken.config import DisclosureConfig
    from harken.feedback.store import FeedbackStore
    from harken.report.datasheet import write_datasheet

    told = settings(DisclosureConfig, about, changes)
    exports = [folder for folder in (run / "collect" / "export", run) if (folder / "judgments.jsonl").is_file()]
    with FeedbackStore.open(store or f"sqlite:///{run / 'collect' / 'feedback.db'}", create=False) as opened:
        sheet = write_datasheet(opened, told, out, exports[0] if exports else None)
    if sheet.pay.warning:
        reporter().say(f"warning: {sheet.pay.warning}")
    for gap in sheet.known_gaps:
        reporter().say(f"gap: {gap}")
    show(str(out))
